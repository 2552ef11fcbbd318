// Puts the page together: a card an endpoint, with its form on the left and the command and the reply on the right.
"use strict";

const readToken = () => byId("token").value;

function startToken(changed) {
  const token = byId("token");
  try { token.value = sessionStorage.getItem("latentd-token") || ""; } catch { /* no storage: typed again */ }
  token.form.onsubmit = (e) => e.preventDefault();
  token.oninput = () => {
    try { sessionStorage.setItem("latentd-token", token.value); } catch { /* for this visit alone */ }
    changed();
  };
}

/* Two of them never run at once in one card: the button sends, then cancels. */
function sender(o, form, accept, out, button) {
  let running = null;
  return async () => {
    if (running) return running.abort();
    if (!form.reportValidity()) return;
    running = new AbortController();
    const started = performance.now(), bar = el("progress", { "aria-label": "Progress" }), label = el("span", {}, "sent");
    const clock = el("span", { class: "note" }), waiting = el("p", { class: "line" }, bar, label, clock);
    const ticking = setInterval(() => { clock.textContent = ((performance.now() - started) / 1000).toFixed(1) + " s"; }, 100);
    const stop = o.media ? watchProgress(bar, label) : () => {};
    out.replaceChildren(waiting);
    out.scrollIntoView({ block: "nearest" });
    button.textContent = "Cancel";
    out.setAttribute("aria-busy", "true");
    try {
      await showReply(o, await send(o, given(form), accept(), readToken(), running.signal), started, form, out);
    } catch (fault) {
      const cancelled = fault.name === "AbortError";
      out.replaceChildren(el("p", { class: "alert", role: "alert" }, cancelled ? "Cancelled: the server stops before its next step." : "No reply: " + fault.message));
    }
    clearInterval(ticking);
    stop();
    running = null;
    button.textContent = "Send";
    out.removeAttribute("aria-busy");
  };
}

function acceptChoice(o) {
  const form = FORMS[o.reply];
  if (!form || !o.media) return null;
  return el("select", { id: o.id + "-accept", form: o.id + "-form" }, el("option", { value: "" }, "JSON"), el("option", { value: form }, form));
}

function card(o, commands) {
  const out = el("div", { class: "reply", "aria-live": "polite", role: "region", "aria-label": "Reply of " + o.path });
  const choice = acceptChoice(o), accept = () => (choice ? choice.value : "");
  const button = el("button", { type: "submit", form: o.id + "-form", class: "send" }, "Send");
  const fields = [...o.fields].sort((a, b) => rank(a) - rank(b)).map((f) => field(f, o.id + "-" + f.name));
  const form = el("form", { id: o.id + "-form", autocomplete: "off", "aria-label": o.method + " " + o.path }, el("div", { class: "fields" }, fields));
  const actions = el("div", { class: "actions" }, button,
    choice ? el("label", { for: choice.id }, "Reply as") : null, choice,
    o.media ? el("button", { type: "reset", form: form.id, class: "quiet" }, "Reset") : null);
  const command = el("pre", { tabindex: "0" });
  const refresh = () => { command.textContent = curl(o, given(form), accept(), readToken()); };
  const go = sender(o, form, accept, out, button);
  form.onsubmit = (e) => { e.preventDefault(); go(); };
  form.onkeydown = (e) => { if (e.key === "Enter" && (e.ctrlKey || e.metaKey)) { e.preventDefault(); go(); } };
  form.oninput = form.onchange = refresh;
  if (choice) choice.onchange = refresh;
  form.onreset = () => setTimeout(() => {
    for (const picker of form.querySelectorAll("input[type=file]")) picker.dispatchEvent(new Event("change", { bubbles: true }));
    refresh();
  });
  commands.push(refresh);
  refresh();
  return el("section", { id: o.id, class: "card" + (o.media ? " makes" : "") },
    el("h2", {}, verb(o.method), el("code", {}, o.path), o.secured ? el("span", { class: "note" }, "token") : null),
    el("p", {}, o.op.description || o.op.summary),
    el("div", { class: "columns" }, form,
      el("div", { class: "results" }, actions, el("div", { class: "code" }, copyButton(() => command.textContent), command), out)));
}

startPage((spec) => {
  const commands = [], operations = operationsOf(spec);
  const made = operations.filter((o) => o.media), asked = operations.filter((o) => !o.media).concat(UNLISTED);
  const links = (list) => list.map((o) => [o.id, o.path, o.method]);
  contents([["Generate", links(made)], ["Ask", links(asked)]]);
  byId("endpoints").replaceChildren(...made.concat(asked).map((o) => card(o, commands)));
  startToken(() => commands.forEach((refresh) => refresh()));
  commands.forEach((refresh) => refresh());
});
