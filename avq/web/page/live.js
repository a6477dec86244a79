// The connection to the daemon: updates, and its loss.

const SILENT_MS = 3500;
const AGAIN_MS = 1000;
const KINDS = ["hello", "status", "frames", "events"];

/** Calls `onUpdate(kind, data)` for every update and `linked(true|false)` when the connection opens or closes. */
export function follow(onUpdate, linked) {
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
        onUpdate(kind, JSON.parse(message.data));
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
    if (document.hidden) return close(); // a hidden page needs no connection
    if (source && heardMs && now - heardMs > SILENT_MS) close();
    if (now - heardMs > SILENT_MS / 2 && !(source && up === null)) say(false);
    if (!source && now >= retryMs) open();
  };
  open();
  setInterval(look, 250);
  document.addEventListener("visibilitychange", look);
}
