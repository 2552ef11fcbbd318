// What came back: status, time, headers, pictures, videos, and the JSON.
"use strict";

/* Parses JSON and keeps integers that JavaScript would round. */
function parse(text) {
  return JSON.parse(text, (key, value, context) =>
    typeof value === "number" && !Number.isSafeInteger(value) && Number.isInteger(value) && context && JSON.rawJSON
      ? JSON.rawJSON(context.source) : value);
}

const plain = (value) => (value && value.rawJSON !== undefined ? value.rawJSON : String(value));

/* Indented, long strings cut: nobody reads base64. */
function pretty(value) {
  return JSON.stringify(value, null, 2).replace(/"((?:[^"\\]|\\.){48})((?:[^"\\]|\\.){200,})"/g,
    (_, head, rest) => '"' + head + "… " + bytes(rest.length) + ' more"');
}

/* A click puts the picture into the form's file field, where there is one. */
function reuse(url, name, form) {
  const zone = form.querySelector(".drop");
  return zone && el("button", { type: "button", class: "quiet", onclick: async () => {
    const blob = await (await fetch(url)).blob();
    zone.take([new File([blob], name, { type: blob.type })]);
  } }, "Use as input");
}

function picture(media, name, form) {
  const url = media.url.startsWith("data:") || media.url.startsWith("blob:") ? media.url : onServer(media.url);
  const seed = plain(media.seed), size = el("span", { class: "note" });
  const image = el("img", { src: url, alt: "picture of seed " + seed, onload: () => {
    size.textContent = image.naturalWidth + "×" + image.naturalHeight;
    image.style.maxWidth = Math.max(256, image.naturalWidth) + "px"; // no larger than it is, but to be seen
  } });
  return el("figure", { class: "picture" }, image,
    el("figcaption", {}, el("span", {}, "seed " + seed), size,
      media.nsfw ? el("span", { class: "status s4" }, "flagged") : null,
      el("a", { href: url, download: name + "-" + seed + ".png" }, "Download"), reuse(url, name + "-" + seed + ".png", form)));
}

function videoPlayer(url, name) {
  return el("figure", { class: "picture video" },
    el("video", { src: url, controls: true, loop: true, muted: true, autoplay: !matchMedia("(prefers-reduced-motion: reduce)").matches, playsinline: true, "aria-label": "the video" }),
    el("figcaption", {}, el("a", { href: url, download: name + ".mp4" }, "Download MP4")));
}

/* Frames without a video: played in the page. */
function framePlayer(frames, fps) {
  const image = el("img", { src: frames[0].url, alt: "frame 1 of " + frames.length });
  const at = el("input", { type: "range", min: 0, max: frames.length - 1, value: 0, "aria-label": "Frame" });
  const show = (i) => { at.value = i; image.src = frames[i].url; image.alt = "frame " + (i + 1) + " of " + frames.length; };
  let timer = null;
  const button = el("button", { type: "button", class: "quiet", onclick: () => {
    if (timer) timer = void clearInterval(timer);
    else timer = setInterval(() => (image.isConnected ? show((Number(at.value) + 1) % frames.length) : clearInterval(timer)), 1000 / fps);
    button.textContent = timer ? "Pause" : "Play";
  } }, "Play");
  at.oninput = () => show(Number(at.value));
  return el("figure", { class: "picture video" }, image, el("figcaption", {}, button, at));
}

function gallery(o, body, form) {
  const name = o.path.slice(1), out = el("div", { class: "gallery" });
  if (body && Array.isArray(body.images)) out.append(...body.images.map((m) => picture(m, name, form)));
  if (body && Array.isArray(body.frames) && body.frames[0]) {
    const frames = body.frames[0].map((m) => ({ ...m, url: m.url.startsWith("data:") ? m.url : onServer(m.url) }));
    const fps = Number((form.querySelector("[name=fps]") || {}).value) || 6;
    if (body.video && body.video.url) out.append(videoPlayer(onServer(body.video.url), name));
    else out.append(framePlayer(frames, fps));
    if (body.video && body.video.error) out.append(el("p", { class: "help" }, "No video: " + body.video.error));
    out.append(el("details", { class: "strip" }, el("summary", {}, frames.length + " frames"),
      el("div", { class: "frames" }, frames.map((m, i) => el("img", { src: m.url, alt: "frame " + (i + 1), loading: "lazy" })))));
  }
  return out.children.length ? out : null;
}

function headerTable(response) {
  return el("details", {}, el("summary", {}, "Headers"),
    el("pre", { tabindex: "0" }, Array.from(response.headers, ([name, value]) => name + ": " + value).join("\n")));
}

function copyButton(text) {
  const button = el("button", { type: "button", class: "quiet copy", onclick: async () => {
    try { await navigator.clipboard.writeText(text()); button.textContent = "Copied"; } catch { button.textContent = "Select and copy by hand"; }
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  } }, "Copy");
  return button;
}

/* The words of an error, from any of the forms that it has. */
function complaint(body) {
  const detail = body && body.detail;
  if (typeof detail === "string") return [detail];
  if (Array.isArray(detail)) return detail.map((d) => (d.loc || []).slice(1).join(".") + ": " + d.msg);
  return detail && detail.msg ? [detail.msg] : [];
}

/* Fills OUT from RESPONSE, which took SECONDS. */
async function showReply(o, response, started, form, out) {
  const type = (response.headers.get("Content-Type") || "").split(";")[0];
  const blob = await response.blob();
  const seconds = ((performance.now() - started) / 1000).toFixed(2);
  const line = el("p", { class: "line" }, el("span", { class: "status s" + String(response.status)[0] }, String(response.status)),
    el("span", {}, seconds + " s"), el("span", { class: "note" }, bytes(blob.size) + (type ? " of " + type : "")));
  out.replaceChildren(line);
  if (type === "image/png" || type === "video/mp4") {
    const url = URL.createObjectURL(blob), seed = response.headers.get("X-Seed") || "";
    out.append(el("div", { class: "gallery" }, type === "image/png" ? picture({ url, seed }, o.path.slice(1), form) : videoPlayer(url, o.path.slice(1))));
    out.append(headerTable(response));
    return;
  }
  const text = await blob.text();
  let shown = text, body = null;
  if (type === "application/json") { body = parse(text); shown = pretty(body); }
  const words = response.ok ? [] : complaint(body);
  if (words.length) out.append(el("ul", { class: "alert" }, words.map((w) => el("li", {}, w))));
  const seen = gallery(o, body, form);
  if (seen) out.append(seen);
  out.append(headerTable(response));
  if (shown) out.append(el("details", { open: !seen && !words.length }, el("summary", {}, body ? "JSON" : "Text"),
    el("div", { class: "code" }, copyButton(() => text), el("pre", { tabindex: "0" }, shown))));
}
