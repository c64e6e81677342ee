// Keeps the files of this folder, so that the page works without a network. A new export replaces them all.
const VERSION = "{{version}}";
const FILES = {{files}};
const CACHE = `headstart-${self.registration.scope}-${VERSION}`;

// Isolation from other sites, which browsers require for threads. A plain file server does not send these headers.
const HEADERS = {
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
  "Cross-Origin-Resource-Policy": "same-origin",
};

self.addEventListener("install", (event) => {
  const requests = FILES.map((name) => new Request(new URL(name, self.registration.scope), { cache: "no-cache" }));
  event.waitUntil(caches.open(CACHE).then((cache) => cache.addAll(requests)).then(() => self.skipWaiting()));
});

self.addEventListener("activate", (event) => {
  const others = (name) => name.startsWith(`headstart-${self.registration.scope}-`) && name !== CACHE;
  const remove = async () => Promise.all((await caches.keys()).filter(others).map((name) => caches.delete(name)));
  event.waitUntil(remove().then(() => self.clients.claim()));
});

self.addEventListener("fetch", (event) => {
  const { request } = event;
  const scope = new URL(self.registration.scope);
  const url = new URL(request.url);
  if (request.method !== "GET" || url.origin !== scope.origin || !url.pathname.startsWith(scope.pathname)) return;
  const name = url.pathname.slice(scope.pathname.length) || "index.html";
  if (FILES.includes(name)) event.respondWith(answer(request, new URL(name, scope)));
});

async function answer(request, url) {
  const found = (await (await caches.open(CACHE)).match(url)) ?? (await fetch(request));
  const headers = new Headers(found.headers);
  for (const [name, value] of Object.entries(HEADERS)) headers.set(name, value);
  return new Response(found.body, { status: found.status, statusText: found.statusText, headers });
}
