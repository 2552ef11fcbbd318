// What both pages share: building elements, reading openapi.json, colours, and the state of the server.
"use strict";

/* An element: attributes, properties that begin with "on", then children (null ones are left out). */
function el(name, attributes, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (typeof value === "function") node[key] = value;
    else if (value === true) node.setAttribute(key, "");
    else if (value !== false && value != null) node.setAttribute(key, value);
  }
  node.append(...children.flat().filter((child) => child != null && child !== false));
  return node;
}

const byId = (id) => document.getElementById(id);
const bytes = (n) => (n < 1000 ? n + " B" : n < 1e6 ? (n / 1e3).toFixed(1) + " kB" : (n / 1e6).toFixed(1) + " MB");
/* Where the daemon is, also behind a proxy that gives it a folder. */
const base = new URL(".", document.baseURI);
const onServer = (path) => new URL(path.replace(/^\//, ""), base).href;

// ---- openapi.json ----

const schemaName = (node) => (node && node.$ref ? node.$ref.split("/").pop() : null);

function resolve(spec, node) {
  const name = schemaName(node);
  return name ? spec.components.schemas[name] : node;
}

/* "string", "list of Media", "map of GPUComputeInfo"… */
function typeText(node) {
  if (!node) return "";
  if (node.$ref) return schemaName(node);
  if (node.allOf) return node.allOf.map(typeText).join(" and ");
  if (node.anyOf) return node.anyOf.map(typeText).join(" or ");
  if (node.type === "array") return "list of " + typeText(node.items);
  if (node.additionalProperties) return "map of " + typeText(node.additionalProperties);
  if (node.format === "binary") return "file";
  return node.type || "any";
}

function fieldsOf(schema) {
  const required = schema.required || [];
  return Object.entries(schema.properties || {}).map(([name, node]) => ({
    name, node, type: typeText(node), required: required.includes(name),
    fallback: node.default, text: node.description || "", values: node.enum || null,
  }));
}

function operationsOf(spec) {
  const found = [];
  for (const [path, methods] of Object.entries(spec.paths))
    for (const [method, op] of Object.entries(methods)) {
      const content = op.requestBody ? op.requestBody.content : {};
      const media = Object.keys(content)[0] || null;
      const good = op.responses["200"].content["application/json"].schema;
      found.push({
        path, op, method: method.toUpperCase(), id: op.operationId, media,
        body: media ? schemaName(content[media].schema) : null,
        fields: media ? fieldsOf(resolve(spec, content[media].schema)) : [],
        reply: schemaName(good), secured: !!(op.security && op.security.length),
      });
    }
  return found;
}

const showDefault = (value) => (value === undefined ? "" : value === "" ? "empty" : String(value));

// ---- The frame around the page ----

function startTheme() {
  const names = ["auto", "light", "dark"], button = byId("theme");
  let now = "auto";
  try { now = localStorage.getItem("latentd-theme") || "auto"; } catch { /* no storage: auto */ }
  const apply = () => {
    if (now === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = now;
    button.textContent = "Theme: " + now;
  };
  button.onclick = () => {
    now = names[(names.indexOf(now) + 1) % names.length];
    try { localStorage.setItem("latentd-theme", now); } catch { /* for this visit alone */ }
    apply();
  };
  apply();
}

async function readHealth() {
  const chip = byId("health");
  let text = "unreachable";
  try { text = (await (await fetch(onServer("health"), { cache: "no-store" })).json()).status; } catch { /* says so */ }
  const words = { OK: "ready", LOADING: "loading", ERROR: "failed" }[text] || text;
  if (chip.textContent !== words) chip.textContent = words;
  chip.dataset.state = text;
}

async function readVersion() {
  const v = await (await fetch(onServer("version"))).json();
  document.title = v.model_id + " · latentd";
  byId("title").replaceChildren(v.pipeline, " ", el("span", { class: "model" }, "with " + v.model_id));
}

function contents(groups) {
  byId("contents").replaceChildren(...groups.map(([title, links]) => el("div", {},
    el("h2", {}, title), el("ul", {}, links.map(([id, text, verb]) =>
      el("li", {}, el("a", { href: "#" + id }, verb ? el("span", { class: "verb " + verb.toLowerCase() }, verb) : null, text)))))));
}

const verb = (method) => el("span", { class: "verb " + method.toLowerCase() }, method);

async function startPage(build) {
  startTheme();
  readHealth();
  setInterval(() => { if (!document.hidden) readHealth(); }, 5000);
  try {
    const [spec] = await Promise.all([fetch(onServer("openapi.json")).then((r) => r.json()), readVersion()]);
    build(spec);
    if (location.hash && byId(location.hash.slice(1))) byId(location.hash.slice(1)).scrollIntoView();
  } catch (fault) {
    byId("endpoints").replaceChildren(el("p", { class: "alert", role: "alert" }, "openapi.json could not be read: " + fault.message));
  }
}
