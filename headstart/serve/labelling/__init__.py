"""Labelling on a page: server of a labelling session, with training and a trial of the trained model."""

from headstart.extras import require_extra

require_extra("serve", "labelling images in the browser")
