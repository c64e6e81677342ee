// Tiles of the images of a session.

import { imageUrl, onState, store } from "./label-store.js";
import { Tile, pump, waitFor } from "./tiles.js";

waitFor(() => store.state);  // addresses name the session
onState(pump);

export class ImageTile extends Tile {
  get id() { return this.imageId ?? null; }

  // Shows an image, whose item may follow later; null for none.
  showImage(id, size) {
    this.imageId = id;
    this.show(id === null ? null : `${id} ${size}`, () => imageUrl(id, size));
  }
}
