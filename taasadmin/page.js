// Lays what is new over what is shown, every two seconds. Everything else works without this file.
"use strict";
(() => {
  const EVERY = 2000;
  const main = document.querySelector("main");
  const notice = document.getElementById("notice");

  const key = (node) => (node.nodeType === Node.ELEMENT_NODE ? node.getAttribute("data-key") : null);
  const alike = (a, b) => a.nodeName === b.nodeName && key(a) === key(b);

  // Make `old` what `anew` is, keeping each node that can stay: with it stay focus, selection and what is typed.
  function morph(old, anew) {
    if (old.isEqualNode(anew)) return;
    if (old.nodeType !== Node.ELEMENT_NODE) {
      old.nodeValue = anew.nodeValue;
      return;
    }
    for (const { name } of [...old.attributes]) if (!anew.hasAttribute(name)) old.removeAttribute(name);
    for (const { name, value } of anew.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
    if (old.nodeName === "INPUT") return;
    const wanted = new Set([...anew.childNodes].map(key).filter(Boolean));
    const here = new Map();
    for (const child of [...old.childNodes]) {
      const name = key(child);
      if (name && !wanted.has(name)) child.remove();
      else if (name) here.set(name, child);
    }
    let at = old.firstChild;
    for (const next of anew.childNodes) {
      const same = key(next) ? here.get(key(next)) : at && alike(at, next) ? at : null;
      if (same) {
        if (same !== at) old.insertBefore(same, at);
        at = same.nextSibling;
        morph(same, next);
      } else {
        old.insertBefore(document.importNode(next, true), at);
      }
    }
    while (at) {
      const gone = at;
      at = at.nextSibling;
      gone.remove();
    }
  }

  function say(words) {
    if (notice.textContent !== words) notice.textContent = words;
    notice.hidden = !words;
  }

  async function refresh() {
    const response = await fetch(main.dataset.from, {
      headers: { "X-Poll": "1" }, cache: "no-store", redirect: "error", signal: AbortSignal.timeout(20000),
    });
    if (response.status === 403) {
      say("This browser is not let in any more. Open the link that the terminal shows.");
      return false;
    }
    if (!response.ok) {
      say(response.status === 404 ? "What this page shows is gone." : "There is trouble with the database: this page may be old.");
      return true;
    }
    const fresh = new DOMParser().parseFromString(await response.text(), "text/html");
    for (const old of document.querySelectorAll("[data-live]")) {
      const anew = fresh.querySelector(`[data-live="${old.dataset.live}"]`);
      const inside = old.contains(document.activeElement);
      if (anew) morph(old, anew);
      if (inside && !old.contains(document.activeElement)) old.focus(); // what had it is gone: stay near
    }
    say("");
    return true;
  }

  async function watch() {
    const began = performance.now();
    let on = true;
    try {
      if (!document.hidden) on = await refresh();
    } catch {
      say("The page's own process does not answer: what you see is old. Was taas_admin.py web ended?");
    }
    // A page of a thousand labels takes long to make: it is asked for less often.
    if (on) setTimeout(watch, Math.max(EVERY, 4 * (performance.now() - began)));
  }
  if (main.dataset.from && document.querySelector("main [data-live]")) setTimeout(watch, EVERY);

  for (const code of document.querySelectorAll("[data-copy]")) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "small";
    button.textContent = "Copy";
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
      setTimeout(() => (button.textContent = "Copy"), EVERY);
    });
    code.after(button);
  }

  // One click, one credential.
  document.addEventListener("submit", (event) => {
    for (const button of event.target.querySelectorAll("button")) setTimeout(() => (button.disabled = true));
  });
  addEventListener("pageshow", () => {
    for (const button of document.querySelectorAll("button:disabled")) button.disabled = false;
  });
})();
