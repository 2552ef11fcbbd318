// The request: one form an endpoint, what is sent from it, and the curl command that sends the same.
"use strict";

/* Routes that orchestrators ask and that the OpenAPI document of the contract does not have. */
const UNLISTED = [
  ["live", "/health/live", "For liveness probes: 200, or 503 when the model or the device has failed."],
  ["ready", "/health/ready", "For readiness probes: 200 when requests are taken, else 503."],
  ["ping", "/ping", "For RunPod and SageMaker: 200 when ready, 204 while loading, else 503."],
  ["metrics", "/metrics", "Metrics in Prometheus' text format."],
].map(([id, path, description]) => ({ id, path, method: "GET", op: { description }, fields: [], media: null, reply: null, secured: false }));

/* Other forms of the reply than JSON, by Accept. */
const FORMS = { ImageResponse: "image/png", VideoResponse: "video/mp4" };

// ---- Fields ----

const LONG = ["prompt", "negative_prompt", "loras"];
const rank = (f) => (f.required ? 0 : f.name === "negative_prompt" ? 1 : f.name === "loras" || f.name === "model_id" ? 3 : 2);

function input(f, id) {
  const common = { id, name: f.name, "aria-describedby": id + "-help", "data-type": f.type, required: f.required };
  if (f.type === "boolean")
    return el("select", common, el("option", { value: "" }, "default (" + showDefault(f.fallback) + ")"),
      el("option", { value: "true" }, "true"), el("option", { value: "false" }, "false"));
  if (LONG.includes(f.name))
    return el("textarea", { ...common, rows: f.name === "prompt" ? 3 : 2, spellcheck: "false",
      placeholder: f.name === "prompt" ? "for example: a mountain lion" : "" });
  if (f.type === "integer" || f.type === "number")
    return el("input", { ...common, type: "text", inputmode: f.type === "integer" ? "numeric" : "decimal", autocomplete: "off",
      placeholder: f.fallback === undefined ? (f.name === "seed" ? "random" : "") : showDefault(f.fallback) });
  return el("input", { ...common, type: "text", autocomplete: "off", placeholder: f.fallback ? showDefault(f.fallback) : "" });
}

function fileField(f, id) {
  const picker = el("input", { id, name: f.name, type: "file", accept: "image/*", required: f.required, "data-type": "file", "aria-describedby": id + "-help" });
  const preview = el("div", { class: "preview" });
  const zone = el("div", { class: "drop" }, preview,
    el("p", {}, "Drop a picture here, paste one, or choose a file:"), picker);
  const show = () => {
    zone.classList.toggle("filled", picker.files.length > 0);
    preview.replaceChildren(...Array.from(picker.files, (file) => el("figure", {},
      el("img", { src: URL.createObjectURL(file), alt: "the picture to be sent: " + file.name, onload: (e) => URL.revokeObjectURL(e.target.src) }),
      el("figcaption", {}, file.name + " · " + bytes(file.size)))));
  };
  const take = (files) => {
    const pictures = Array.from(files || []).filter((file) => file.type.startsWith("image/"));
    if (!pictures.length) return false;
    const list = new DataTransfer();
    list.items.add(pictures[0]);
    picker.files = list.files;
    picker.dispatchEvent(new Event("change", { bubbles: true }));
    return true;
  };
  picker.addEventListener("change", show);
  zone.ondragover = (e) => { e.preventDefault(); zone.classList.add("over"); };
  zone.ondragleave = () => zone.classList.remove("over");
  zone.ondrop = (e) => { e.preventDefault(); zone.classList.remove("over"); take(e.dataTransfer.files); };
  document.addEventListener("paste", (e) => { if (take(e.clipboardData.files)) e.preventDefault(); });
  zone.take = take;
  return zone;
}

function field(f, id) {
  const file = f.type === "file";
  const facts = f.type === "string" || file ? "" : f.type + (f.fallback === undefined || f.fallback === "" ? "" : ", default " + showDefault(f.fallback)) + ". ";
  return el("div", { class: "field" + (file || LONG.includes(f.name) ? " wide" : "") },
    el("div", { class: "head" }, el("label", { for: id }, f.name), f.required ? el("span", { class: "required" }, "required") : null),
    file ? fileField(f, id) : input(f, id),
    el("p", { id: id + "-help", class: "help" }, el("span", { class: "note" }, facts), f.text));
}

// ---- The request ----

/* [name, value] of every field that is to be sent; a File for files. */
function given(form) {
  const list = [];
  for (const control of form.querySelectorAll("[data-type]")) {
    if (control.files) for (const file of control.files) list.push([control.name, file, "file"]);
    else if (control.value !== "") list.push([control.name, control.value, control.dataset.type]);
  }
  return list;
}

/* JSON text. Numbers go as they were typed: JavaScript would round seeds of 64 bits. What is no number goes as a string, and
 * the server says what it thinks of it. */
function jsonBody(list) {
  const number = /^-?(0|[1-9]\d*)(\.\d+)?([eE][-+]?\d+)?$/;
  return "{" + list.map(([name, value, type]) => {
    const literal = type === "boolean" || (type !== "string" && number.test(value));
    return JSON.stringify(name) + ": " + (literal ? value : JSON.stringify(value));
  }).join(", ") + "}";
}

const quoted = (text) => (/^[\w./:@=+-]+$/.test(text) ? text : "'" + text.replace(/'/g, "'\\''") + "'");
/* A value of curl's -F: in quotes of its own where it has a character that means something there. */
const formValue = (text) => (/^[@<"]|[;,"\\]/.test(text) ? '"' + text.replace(/[\\"]/g, "\\$&") + '"' : text);

function curl(o, list, accept, token) {
  const parts = ["curl"];
  if (token && o.secured) parts.push('-H "Authorization: Bearer $AUTH_TOKEN"');
  if (accept) parts.push("-H " + quoted("Accept: " + accept));
  if (o.media === "application/json") parts.push("-H 'Content-Type: application/json'", "-d " + quoted(jsonBody(list)));
  else for (const [name, value, type] of list)
    parts.push("-F " + quoted(name + "=" + (type === "file" ? "@" + formValue(value.name) : formValue(value))));
  parts.push(quoted(onServer(o.path)));
  if (accept) parts.push("-o " + (accept === "video/mp4" ? "video.mp4" : "picture.png"));
  return parts.join(o.media ? " \\\n     " : " ");
}

async function send(o, list, accept, token, signal) {
  const headers = {};
  let body = null;
  if (accept) headers.Accept = accept;
  if (token && o.secured) headers.Authorization = "Bearer " + token;
  if (o.media === "application/json") {
    headers["Content-Type"] = "application/json";
    body = jsonBody(list);
  } else if (o.media) {
    body = new FormData();
    for (const [name, value] of list) body.append(name, value);
  }
  return fetch(onServer(o.path), { method: o.method, headers, body, signal, cache: "no-store" });
}

// ---- What the server does meanwhile ----

/* Says what the device does until STOP is called. The metrics know of one job, whoever asked for it. */
function watchProgress(bar, label) {
  const timer = setInterval(async () => {
    try {
      const text = await (await fetch(onServer("metrics"))).text();
      const value = (name) => Number((text.match(new RegExp("^" + name + " (\\S+)", "m")) || [])[1] || 0);
      const phase = (text.match(/^latentd_running_phase\{phase="(\w+)"\} 1$/m) || [])[1];
      const steps = value("latentd_running_steps");
      if (!phase || !bar.isConnected) return;
      if (phase === "step" && steps) { bar.max = steps; bar.value = value("latentd_running_step"); } else bar.removeAttribute("value");
      label.textContent = phase === "step" && steps ? "step " + bar.value + " of " + steps
        : { text: "reading the prompt", decode: "decoding", encode: "encoding" }[phase] || phase;
    } catch { /* the reply itself will say what is wrong */ }
  }, 400);
  return () => clearInterval(timer);
}
