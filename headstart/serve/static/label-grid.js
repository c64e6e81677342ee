// Virtual grid: only the visible rows of any number of images are in the document.

import { say, count } from "./api.js";
import { fetchJson, report } from "./label-store.js";
import { ImageTile } from "./label-tiles.js";

const PAGE = 200, OVERSCAN = 2, GAP = 6, REFRESH_MS = 300;

export class Grid {
  // opened(item id) is called for a double click or Enter, changed() when the selection changes.
  constructor(scroller, { opened, changed }) {
    Object.assign(this, { scroller, opened, changed, view: "all", total: 0, target: 132, columns: 1, cell: 100 });
    this.pages = new Map();
    this.stale = new Set();
    this.fetching = new Map();
    this.tiles = new Map();
    this.spare = [];
    this.selected = new Set();
    this.active = 0;
    this.anchor = 0;
    this.version = 0;
    this.canvas = document.createElement("div");
    this.canvas.className = "canvas";
    this.canvas.setAttribute("role", "presentation");
    this.band = document.createElement("div");
    this.band.className = "band";
    this.band.hidden = true;
    scroller.append(this.canvas);
    this.canvas.append(this.band);
    scroller.addEventListener("scroll", () => this.drawSoon(), { passive: true });
    scroller.addEventListener("pointerdown", (event) => this.press(event));
    scroller.addEventListener("dblclick", () => this.open());
    scroller.addEventListener("focus", () => this.drawSoon());
    new ResizeObserver(() => this.measure()).observe(scroller);
  }

  // ---- What is shown ------------------------------------------------------------------------------------------------

  // Shows a view; `keepPlace` for the same view with other content.
  setView(view, total = null, keepPlace = false) {
    this.view = view;
    this.version += 1;
    for (const request of this.fetching.values()) request.abort();
    this.fetching.clear();
    if (keepPlace) for (const page of this.pages.keys()) this.stale.add(page);
    else { this.pages.clear(); this.stale.clear(); this.selected.clear(); this.active = this.anchor = 0; this.scroller.scrollTop = 0; }
    if (total !== null) this.total = total;
    this.measure();
    this.changed();
    this.fetchSoon();
  }

  refresh(total = null) {
    if (total !== null) this.total = total;
    for (const page of this.pages.keys()) this.stale.add(page);
    this.measure();
    this.fetchSoon();
  }

  item(index) {
    return this.pages.get(Math.floor(index / PAGE))?.[index % PAGE] ?? null;
  }

  id(index) {
    return this.item(index)?.id ?? null;
  }

  measure() {
    const width = this.scroller.clientWidth - 2 * GAP;
    if (width <= 0) return;
    this.height = this.scroller.clientHeight;
    this.columns = Math.max(this.target > 200 ? 2 : 3, Math.floor(width / this.target));
    this.cell = Math.floor(width / this.columns);
    this.canvas.style.height = `${this.cell * Math.ceil(this.total / this.columns) + 2 * GAP}px`;
    for (const tile of this.tiles.values()) tile.place = -1;
    this.drawSoon();
  }

  drawSoon() {
    if (this.drawing) return;
    this.drawing = true;
    requestAnimationFrame(() => { this.drawing = false; this.draw(); });
  }

  // First index, and index after the last one, of the rows on the screen and `overscan` rows above and below.
  range(overscan = OVERSCAN) {
    const top = this.scroller.scrollTop, row = Math.floor((top - GAP) / this.cell);
    const first = Math.max(0, row - overscan) * this.columns;
    const last = Math.min(this.total, (row + Math.ceil(this.height / this.cell) + 1 + overscan) * this.columns);
    return [first, Math.max(first, last)];
  }

  draw() {
    if (!this.scroller.clientWidth || !this.cell) return;
    const [first, last] = this.range();
    for (const [index, tile] of this.tiles) {
      if (index >= first && index < last) continue;
      this.tiles.delete(index);
      tile.showImage(null, 0);
      this.spare.push(tile);
    }
    const size = this.cell > 170 ? 256 : this.cell > 100 ? 160 : 96;
    const [top, bottom] = this.range(0);  // thumbnails that are asked for last are loaded first: those of the screen, from its top
    for (let index = first; index < last; index += 1) if (index < top || index >= bottom) this.drawTile(index, size);
    for (let index = bottom - 1; index >= top; index -= 1) this.drawTile(index, size);
    for (const tile of this.spare.splice(0)) tile.free();
    const hasFocus = document.activeElement === this.scroller;
    const at = hasFocus ? this.tiles.get(this.active) : null;
    if (at) this.scroller.setAttribute("aria-activedescendant", at.element.id);
    else this.scroller.removeAttribute("aria-activedescendant");
    this.fetchSoon();
  }

  drawTile(index, size) {
    let tile = this.tiles.get(index);
    const id = this.id(index), item = this.item(index);
    if (!tile) {
      tile = this.spare.pop() ?? new ImageTile();
      tile.place = -1;
      this.tiles.set(index, tile);
    }
    if (tile.place !== index) {
      tile.place = index;
      tile.element.id = `tile-${index}`;
      tile.element.style.width = tile.element.style.height = `${this.cell - GAP}px`;
      tile.element.style.transform = `translate(${GAP + (index % this.columns) * this.cell}px, ${GAP + Math.floor(index / this.columns) * this.cell}px)`;
      tile.element.setAttribute("aria-posinset", index + 1);
      tile.element.setAttribute("aria-setsize", this.total);
      if (!tile.element.isConnected) this.canvas.append(tile.element);
    }
    tile.showImage(id, size);
    if (tile.described !== item || tile.describedIndex !== index) {
      tile.describe(item, `Image ${index + 1}`);
      [tile.described, tile.describedIndex] = [item, index];
    }
    tile.select(id !== null && this.selected.has(id));
    tile.element.classList.toggle("active", index === this.active);
  }

  // ---- Data ---------------------------------------------------------------------------------------------------------

  fetchSoon() {
    if (this.fetchTimer) return;
    const since = performance.now() - (this.fetchedAt ?? -1e9);
    this.fetchTimer = setTimeout(() => { this.fetchTimer = null; this.fetchedAt = performance.now(); this.fetch(); }, this.isMissing() ? 40 : Math.max(40, REFRESH_MS - since));
  }

  isMissing() {
    const [first, last] = this.range();
    for (let page = Math.floor(first / PAGE); page * PAGE < last; page += 1) if (!this.pages.has(page) && !this.fetching.has(page)) return true;
    return false;
  }

  fetch() {
    if (!this.scroller.clientWidth) return;
    const [first, last] = this.range();
    const needed = [];
    for (let page = Math.floor(first / PAGE); page * PAGE < Math.max(1, last); page += 1) needed.push(page);
    for (const [page, request] of this.fetching) if (!needed.includes(page)) { request.abort(); this.fetching.delete(page); }
    for (const page of needed) if ((!this.pages.has(page) || this.stale.has(page)) && !this.fetching.has(page)) this.fetchPage(page);
    for (const page of this.pages.keys()) if (this.pages.size > 60 && !needed.includes(page)) this.pages.delete(page);
  }

  async fetchPage(page) {
    const request = new AbortController(), version = this.version;
    this.fetching.set(page, request);
    this.stale.delete(page);
    try {
      const reply = await fetchJson(`images?view=${encodeURIComponent(this.view)}&start=${page * PAGE}&count=${PAGE}`, request.signal);
      if (version !== this.version) return;
      this.pages.set(page, reply.items);
      if (reply.total !== this.total) { this.total = reply.total; this.active = Math.max(0, Math.min(this.active, this.total - 1)); this.measure(); this.changed(); }
      this.drawSoon();
    } catch (error) {
      this.stale.add(page);
      if (error.name !== "AbortError" && error.kind !== "away") report(error);
    } finally {
      if (this.fetching.get(page) === request) this.fetching.delete(page);
    }
  }

  // ---- Selection ----------------------------------------------------------------------------------------------------

  // The images that an answer applies to: the selection, or the active image.
  targets() {
    if (this.selected.size) return [...this.selected];
    const focused = document.activeElement, id = focused === this.scroller || focused?.id === "class-name" ? this.id(this.active) : null;
    return id === null ? [] : [id];
  }

  clear() { this.selected.clear(); this.changed(); this.drawSoon(); }

  async selectRange(from, to, add = false) {
    const [first, last] = from < to ? [from, to] : [to, from];
    if (!add) this.selected.clear();
    let missing = false;
    for (let index = first; index <= last; index += 1) {
      const id = this.id(index);
      if (id === null) missing = true; else this.selected.add(id);
    }
    if (missing) {
      const ids = await this.allIds();
      for (const id of ids.slice(first, last + 1)) this.selected.add(id);
    }
    this.changed();
    this.drawSoon();
  }

  async allIds() {
    try { return (await fetchJson(`ids?view=${encodeURIComponent(this.view)}`)).ids; } catch (error) { report(error); return []; }
  }

  // An answer that is given before all are selected waits for `selecting`.
  selectAll() {
    this.selecting = this.selectEvery().finally(() => { this.selecting = null; });
  }

  async selectEvery() {
    this.selected = new Set(await this.allIds());
    say(`${count(this.selected.size, "image")} selected.`);
    this.changed();
    this.drawSoon();
  }

  toggle(index) {
    const id = this.id(index);
    if (id === null) return;
    if (!this.selected.delete(id)) this.selected.add(id);
    this.anchor = index;
    this.changed();
    this.drawSoon();
  }

  indexAt(event) {
    const box = this.canvas.getBoundingClientRect();
    const column = Math.floor((event.clientX - box.left - GAP) / this.cell), row = Math.floor((event.clientY - box.top - GAP) / this.cell);
    const index = row * this.columns + column;
    return column >= 0 && column < this.columns && index >= 0 && index < this.total ? index : -1;
  }

  press(event) {
    if (event.button !== 0 || event.clientX > this.scroller.getBoundingClientRect().left + this.scroller.clientWidth) return;
    if (event.pointerType === "touch") { this.tap(event); return; }
    event.preventDefault();
    this.scroller.focus({ preventScroll: true });
    const index = this.indexAt(event), box = this.canvas.getBoundingClientRect();
    const start = { x: event.clientX - box.left, y: event.clientY - box.top };
    const kept = event.ctrlKey || event.metaKey || event.shiftKey ? new Set(this.selected) : new Set();
    let dragging = false, last = event, timer = 0;
    const drag = () => {
      const canvas = this.canvas.getBoundingClientRect(), frame = this.scroller.getBoundingClientRect();
      if (last.clientY < frame.top + 24) this.scroller.scrollTop -= 18;
      else if (last.clientY > frame.bottom - 24) this.scroller.scrollTop += 18;
      this.rectangle(start, { x: last.clientX - canvas.left, y: last.clientY - canvas.top }, kept);
      timer = requestAnimationFrame(drag);
    };
    const move = (moved) => {
      last = moved;
      if (dragging || Math.hypot(moved.clientX - event.clientX, moved.clientY - event.clientY) < 6) return;
      dragging = true;
      drag();
    };
    const up = () => {
      removeEventListener("pointermove", move);
      removeEventListener("pointerup", up);
      removeEventListener("pointercancel", up);
      cancelAnimationFrame(timer);
      this.band.hidden = true;
      if (!dragging) this.click(index, event);
    };
    addEventListener("pointermove", move);
    addEventListener("pointerup", up);
    addEventListener("pointercancel", up);
  }

  // On a touch screen a drag scrolls, and a tap selects.
  tap(event) {
    const up = (end) => {
      removeEventListener("pointerup", up);
      removeEventListener("pointercancel", up);
      if (end.type !== "pointerup" || Math.hypot(end.clientX - event.clientX, end.clientY - event.clientY) > 8) return;
      const index = this.indexAt(end);
      if (index >= 0) { this.active = index; this.toggle(index); }
    };
    addEventListener("pointerup", up);
    addEventListener("pointercancel", up);
  }

  click(index, event) {
    if (index < 0) { this.clear(); return; }
    this.active = index;
    if (event.shiftKey) this.selectRange(this.anchor, index, event.ctrlKey || event.metaKey);
    else if (event.ctrlKey || event.metaKey) this.toggle(index);
    else { this.selected.clear(); this.toggle(index); }
  }

  // Selects the tiles that a rectangle touches, and those of `kept`.
  rectangle(one, other, kept) {
    const [left, right] = [Math.min(one.x, other.x), Math.max(one.x, other.x)], [top, bottom] = [Math.min(one.y, other.y), Math.max(one.y, other.y)];
    Object.assign(this.band.style, { left: `${left}px`, top: `${top}px`, width: `${right - left}px`, height: `${bottom - top}px` });
    this.band.hidden = false;
    const columns = [Math.max(0, Math.floor((left - GAP) / this.cell)), Math.min(this.columns - 1, Math.floor((right - GAP) / this.cell))];
    const rows = [Math.max(0, Math.floor((top - GAP) / this.cell)), Math.floor((bottom - GAP) / this.cell)];
    const found = new Set(kept);
    for (let row = rows[0]; row <= rows[1]; row += 1) {
      for (let column = columns[0]; column <= columns[1]; column += 1) {
        const index = row * this.columns + column, id = index < this.total ? this.id(index) : null;
        if (id !== null) found.add(id);
      }
    }
    this.selected = found;
    this.changed();
    this.drawSoon();
  }

  // ---- Keys ---------------------------------------------------------------------------------------------------------

  key(event) {
    if (document.activeElement !== this.scroller || !this.total) return false;
    if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "a") { this.selectAll(); return true; }
    const step = this.stepOf(event);
    if (step !== null) { this.move(step, event.shiftKey); return true; }
    if (event.key === " ") { this.toggle(this.active); return true; }
    if (event.key === "a") { this.selectAll(); return true; }
    if (event.key === "Enter") { this.open(); return true; }
    if (event.key === "Escape" && this.selected.size) { this.clear(); return true; }
    return false;
  }

  stepOf(event) {
    const rows = Math.max(1, Math.floor(this.height / this.cell));
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -this.columns, ArrowDown: this.columns, PageUp: -rows * this.columns, PageDown: rows * this.columns, Home: -this.total, End: this.total };
    return event.key in steps ? steps[event.key] : null;
  }

  move(step, extend) {
    const next = this.active + step;
    if (Math.abs(step) > 1 && (next < 0 || next >= this.total)) this.active = step < 0 ? (Math.abs(step) === this.columns ? this.active : 0) : this.total - 1;
    else this.active = Math.max(0, Math.min(this.total - 1, next));
    if (extend) this.selectRange(this.anchor, this.active);
    else this.anchor = this.active;
    this.reveal(this.active);
    this.drawSoon();
  }

  reveal(index) {
    const top = Math.floor(index / this.columns) * this.cell, bottom = top + this.cell + 2 * GAP;
    if (top < this.scroller.scrollTop) this.scroller.scrollTop = top;
    else if (bottom > this.scroller.scrollTop + this.height) this.scroller.scrollTop = bottom - this.height;
  }

  open() {
    const id = this.id(this.active);
    if (id !== null) this.opened(id, this.item(this.active));
  }
}
