// The reference: every endpoint with its parameters and replies, and every schema.
"use strict";

/* A link to a schema inside of the text of a type. */
function typeNode(text, spec) {
  const name = text.split(" ").pop();
  if (!spec.components.schemas[name]) return text;
  return [text.slice(0, -name.length), el("a", { href: "#schema-" + name }, name)];
}

function fieldTable(fields, spec, caption) {
  const hasDefaults = fields.some((f) => f.fallback !== undefined);
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    el("table", {}, el("caption", { class: "hidden" }, caption),
      el("thead", {}, el("tr", {}, ["Name", "Type", hasDefaults ? "Default" : null, "Meaning"].filter(Boolean).map((h) => el("th", { scope: "col" }, h)))),
      el("tbody", {}, fields.map((f) => el("tr", {},
        el("th", { scope: "row" }, el("code", {}, f.name), f.required ? el("span", { class: "required" }, "required") : null),
        el("td", {}, f.values ? f.values.map((v, i) => [i ? ", " : "", el("code", {}, v)]).flat() : typeNode(f.type, spec)),
        hasDefaults ? el("td", { "data-label": f.fallback === undefined ? null : "default: " }, f.fallback === undefined ? "" : f.fallback === "" ? "empty" : el("code", {}, String(f.fallback))) : null,
        el("td", {}, f.text))))));
}

function replyTable(o, spec) {
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Replies of " + o.path },
    el("table", {}, el("thead", {}, el("tr", {}, ["Status", "Meaning", "Body"].map((h) => el("th", { scope: "col" }, h)))),
      el("tbody", {}, Object.entries(o.op.responses).sort().map(([status, r]) => el("tr", {},
        el("th", { scope: "row" }, el("span", { class: "status s" + status[0] }, status)),
        el("td", {}, r.description),
        el("td", {}, typeNode(typeText(r.content["application/json"].schema), spec)))))));
}

function operation(o, spec) {
  return el("section", { id: o.id, class: "card" },
    el("h2", {}, verb(o.method), el("code", {}, o.path)),
    el("p", {}, o.op.description || o.op.summary),
    o.fields.length ? el("h3", {}, "Parameters ", el("span", { class: "note" }, o.media)) : null,
    o.fields.length ? fieldTable(o.fields, spec, "Parameters of " + o.path) : null,
    el("h3", {}, "Replies"), replyTable(o, spec),
    el("p", {}, el("a", { href: "docs#" + o.id }, "Try it")));
}

function schema(name, spec) {
  const s = spec.components.schemas[name];
  return el("section", { id: "schema-" + name, class: "card" },
    el("h2", {}, name), s.description ? el("p", {}, s.description) : null,
    fieldTable(fieldsOf(s), spec, "Fields of " + name));
}

startPage((spec) => {
  const operations = operationsOf(spec), names = Object.keys(spec.components.schemas);
  contents([
    ["General", [["requests", "Requests"], ["replies", "Replies"]]],
    ["Endpoints", operations.map((o) => [o.id, o.path, o.method])],
    ["Schemas", names.map((name) => ["schema-" + name, name])],
  ]);
  byId("endpoints").replaceChildren(...operations.map((o) => operation(o, spec)), ...names.map((name) => schema(name, spec)));
});
