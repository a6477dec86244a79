// The connection: news while the daemon lives, and the truth when it does not.

const SILENT_MS = 3500;
const AGAIN_MS = 1000;
const KINDS = ["hello", "status", "frames", "events"];

/** Calls `told(kind, data)` for all news and `linked(true|false)` when the daemon comes or goes. */
export function follow(told, linked) {
  let source = null;
  let heardMs = 0;
  let up = null;
  let retryMs = 0;

  const say = (now) => {
    if (up !== now) linked((up = now));
  };
  const open = () => {
    close();
    retryMs = Date.now() + AGAIN_MS;
    source = new EventSource("/events?only=status,frames,events");
    for (const kind of KINDS)
      source.addEventListener(kind, (message) => {
        heardMs = Date.now();
        told(kind, JSON.parse(message.data));
        say(true);
      });
    source.addEventListener("bye", () => close());
    source.addEventListener("error", () => close());
  };
  const close = () => {
    source?.close();
    source = null;
  };
  const look = () => {
    const now = Date.now();
    if (document.hidden) return close(); // a page nobody sees holds no connection
    if (source && heardMs && now - heardMs > SILENT_MS) close();
    if (now - heardMs > SILENT_MS / 2 && !(source && up === null)) say(false);
    if (!source && now >= retryMs) open();
  };
  open();
  setInterval(look, 250);
  document.addEventListener("visibilitychange", look);
}
