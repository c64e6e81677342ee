// Panel "Save and load": where the labels are, export and import.

import { Trouble, copy, count, json, make, say } from "./api.js";
import { report, send, store } from "./label-store.js";

const DOWNLOADS = [["csv", "Table (CSV)"], ["coco", "COCO (JSON)"], ["label-studio", "Label Studio (JSON)"]];

let facts, table, command, state;

export const keep = {
  id: "keep",
  title: "Save and load",

  build(panel) {
    table = make("code", { id: "labels-file" });
    command = make("code", {});
    facts = make("p", { class: "soft small" });
    state = make("p", { role: "status", class: "small" });
    panel.append(make("div", { class: "bar-line panel-bar" }, make("h2", { id: "panel-title", text: "Save and load" })),
      make("div", { class: "scroll-box keep" },
        make("section", { class: "panel" }, make("h3", { text: "Labels are saved after every action" }), make("p", {}, "Table: ", table), facts, make("p", { class: "command" }, command, make("button", { type: "button", class: "quiet", text: "Copy", onclick: (event) => copy(command.textContent, event.target) }))),
        make("section", { class: "panel" }, make("h3", { text: "Export" }), make("div", { class: "row" }, ...DOWNLOADS.map(([kind, text]) => make("a", { class: "button", href: `v1/label/export?kind=${kind}`, download: true, text }))), folders()),
        make("section", { class: "panel" }, make("h3", { text: "Import labels" }), importForm(), importFolderForm()), state));
  },

  shown() { table.closest(".scroll-box").querySelector("a, button").focus({ preventScroll: true }); },

  update(now) {
    table.textContent = now.labels_file;
    command.textContent = `headstart train ${/^[\w./-]+$/.test(now.labels_file) ? now.labels_file : `'${now.labels_file.replaceAll("'", "'\\''")}'`}`;
    facts.textContent = `${count(now.labelled, "label")} for ${count(now.images, "image")}. The images are never changed. The file beside it that ends in .journal.jsonl has every action, for undo.`;
  },

  key: () => false,
  answer: () => false,
};

function folders() {
  const out = make("input", { type: "text", id: "export-out", required: true, autocomplete: "off", spellcheck: "false" });
  const how = make("select", { id: "export-how" }, make("option", { value: "copy", text: "Copies" }), make("option", { value: "link", text: "Links" }));
  return make("form", { onsubmit: async (event) => {
    event.preventDefault();
    tell("Writing the folders …");
    const reply = await send("export", { kind: "folders", out: out.value, how: how.value });
    tell(reply ? `${count(reply.count, "image")} written to ${reply.out}.` : "");
  } }, make("label", { for: "export-out", text: "New folder, with one folder of images per class; a relative path starts beside the table" }), make("div", { class: "row" }, out, make("label", { class: "hidden-words", for: "export-how", text: "Copies or links" }), how, make("button", { type: "submit", text: "Write folders" })));
}

function importForm() {
  const file = make("input", { type: "file", id: "import-file", required: true, accept: ".csv,.tsv,.json" });
  const kind = make("select", { id: "import-kind" }, ...DOWNLOADS.map(([value, text]) => make("option", { value, text })));
  return make("form", { onsubmit: async (event) => {
    event.preventDefault();
    const body = new FormData();
    body.append("file", file.files[0], file.files[0].name);
    body.append("kind", kind.value);
    body.append("session", store.state.session);
    tell("Reading the labels …");
    try { imported(await json("v1/label/import", { method: "POST", body })); } catch (error) { tell(""); if (!(error instanceof Trouble)) throw error; report(error); }
  } }, make("label", { for: "import-file", text: "File with labels" }), make("div", { class: "row" }, file, make("label", { class: "hidden-words", for: "import-kind", text: "Format" }), kind, make("button", { type: "submit", text: "Import" })));
}

function importFolderForm() {
  const folder = make("input", { type: "text", id: "import-folder", required: true, autocomplete: "off", spellcheck: "false" });
  return make("form", { onsubmit: async (event) => {
    event.preventDefault();
    tell("Reading the folders …");
    const reply = await send("import", { folder: folder.value });
    if (reply) imported(reply); else tell("");
  } }, make("label", { for: "import-folder", text: "Folder with one folder of images per class" }), make("div", { class: "row" }, folder, make("button", { type: "submit", text: "Import" })));
}

const imported = (reply) => tell(`${reply.changed.length ? `${count(reply.changed.length, "label")} imported.` : "No label changed."}${reply.num_unknown ? ` ${count(reply.num_unknown, "entry", "entries")} of the file are for no image of this session, for example ${reply.unknown[0]}.` : ""}`);

function tell(words) { state.textContent = words; if (words) say(words); }
