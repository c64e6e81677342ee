"""Running the frozen backbone once over the images, and keeping what it gave."""
