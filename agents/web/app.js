// The page: a form that queues jobs, a stage that shows one of them, a gallery of the newest. The service holds all
// state; what is kept here (the form's last values) may be lost. Text from outside only ever becomes textContent.

const POLL_MS = 4000;
const STREAMS = 3; // browsers open six connections to a host; event streams must leave some for the rest
const ENDED = ["succeeded", "failed", "rejected", "cancelled"];
const WORDS = {
  queued: "In the queue", planned: "Waiting for a generator", running: "Running",
  succeeded: "Finished", failed: "Failed", rejected: "Rejected", cancelled: "Cancelled",
};
const NUMBERS = ["steps", "cfg_scale", "n", "width", "height", "seed"];

const $ = (id) => document.getElementById(id);
const form = $("form");
const jobs = new Map(); // id → job document, with `progress` and `preview` while it runs
const streams = new Map(); // id → EventSource
const thumbnails = new Map(); // id → {item, key}
let order = []; // job ids, newest first
let shown = location.hash.slice(1);
let models = null;
let reachable = null;

class Refused extends Error {
  constructor(message, path) {
    super(message);
    this.path = path;
  }
}

// --- the service -----------------------------------------------------------------------------------------------------

async function call(path, body) {
  const options = body === undefined ? {} : {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
  };
  const response = await fetch(path, options);
  const text = await response.text();
  let data = {};
  try {
    data = JSON.parse(text);
  } catch {
    if (response.ok) throw new Refused("The service gave an answer that this page does not understand.");
  }
  if (response.ok) return data;
  const wait = response.headers.get("Retry-After");
  const message = data.error?.message ?? `The service answered ${response.status}.`;
  throw new Refused(wait ? `${message} Try again in ${wait} s.` : message, data.error?.path);
}

async function lookAtService() {
  let state, text;
  try {
    const response = await fetch("/readyz", { cache: "no-store" });
    [state, text] = response.ok ? ["ready", "Ready"] : ["wait", "Not ready"];
  } catch {
    [state, text] = ["down", "Service not reachable"];
  }
  $("service").dataset.state = state;
  if ($("service").textContent !== text) $("service").textContent = text;
  $("down").hidden = state === "ready";
  const note = state === "down"
    ? "Darkroom can't be reached. Your settings are kept; this page goes on by itself when the service is back."
    : "Darkroom is running but not ready: a part of it is still starting or is missing. `darkroom doctor` names it.";
  if ($("down").textContent !== note) $("down").textContent = note;
  reachable = state !== "down";
}

async function lookAtModels() {
  const found = [];
  let cursor = "";
  do {
    // An imported catalog may know thousands of models that lie nowhere; what can't be chosen isn't fetched.
    const page = await call(`/api/models?kind=checkpoint&missing=no&cursor=${encodeURIComponent(cursor)}`);
    found.push(...page.models);
    cursor = page.next;
  } while (cursor);
  const usable = (model) => !model.unsafe && !model.problem;
  const key = (list) => JSON.stringify(list?.map((model) => [model.sha256, model.name, model.title, model.pictures, usable(model)]));
  if (models && key(found) === key(models)) return;
  const known = new Set((models ?? found).filter(usable).map((model) => model.sha256));
  const arrived = found.filter((model) => usable(model) && !known.has(model.sha256));
  models = found;
  const wanted = form.model.value || saved().model;
  form.model.replaceChildren(...found.map((model) => {
    const why = model.unsafe ? "unsafe format" : model.problem;
    const name = model.title && model.title !== model.name ? `${model.title} · ${model.name}` : model.name;
    const option = el("option", { value: model.sha256 }, why ? `${name} (${why})` : name);
    option.disabled = !usable(model);
    return option;
  }));
  const choice = found.find((model) => model.sha256 === wanted && usable(model)) ?? found.find(usable);
  form.model.value = choice?.sha256 ?? "";
  if (!choice) form.model.prepend(el("option", { value: "", selected: "" }, "No checkpoint yet"));
  $("generate").disabled = !choice;
  drawModelPicture();
  if (arrived.length) announce(`New model: ${arrived.map((model) => model.name).join(", ")}`);
  drawStage(true);
}

async function lookAtJobs() {
  const list = (await call("/api/jobs?limit=50")).jobs;
  order = [...order.filter((id) => active(id) && !list.some((job) => job.id === id)), ...list.map((job) => job.id)];
  for (const job of list) {
    const before = jobs.get(job.id);
    if (!before || !ended(before)) learn(job);
  }
  if (shown && !jobs.has(shown)) learn(await call(`/api/jobs/${encodeURIComponent(shown)}`).catch(() => ({ id: "" })));
  if (!jobs.has(shown)) shown = order[0] ?? "";
  draw();
}

async function lookAtSamplers() {
  const { samplers, schedulers } = await call("/api/samplers");
  for (const [field, list] of [[form.sampler, samplers], [form.scheduler, schedulers]]) {
    field.replaceChildren(...list.map(({ id, label }) => el("option", { value: id }, label)));
    const wanted = saved()[field.name] ?? (field === form.sampler ? "euler" : "normal");
    field.value = list.some(({ id }) => id === wanted) ? wanted : list[0]?.id ?? "";
  }
}

async function look() {
  if (document.hidden) return;
  await lookAtService();
  if (!reachable) return;
  const asked = [lookAtModels(), lookAtJobs()];
  if (!form.sampler.options.length) asked.push(lookAtSamplers());
  await Promise.allSettled(asked);
}

// --- jobs ------------------------------------------------------------------------------------------------------------

const ended = (job) => ENDED.includes(job.status);
const active = (id) => jobs.has(id) && !ended(jobs.get(id));

function learn(job) {
  if (!job.id) return;
  const before = jobs.get(job.id) ?? {};
  if (before.status && ended(before) && !ENDED.includes(job.status)) return; // a late answer never undoes the end
  jobs.set(job.id, { ...before, ...job, progress: job.progress ?? before.progress });
  if (ended(job)) {
    streams.get(job.id)?.close();
    streams.delete(job.id);
    if (before.status && !ended(before)) announce(`${WORDS[job.status]}: ${title(job)}`);
  }
}

function follow() {
  for (const id of order.filter(active).reverse()) {
    if (streams.size >= STREAMS && id !== shown) continue;
    if (!streams.has(id)) attach(id);
  }
}

function attach(id) {
  const stream = new EventSource(`/api/jobs/${id}/events`); // it comes back with Last-Event-ID by itself
  streams.set(id, stream);
  const on = (name, act) => stream.addEventListener(name, (event) => {
    if (streams.get(id) === stream && active(id)) act(JSON.parse(event.data));
  });
  on("planned", (plan) => { learn({ id, status: "planned", plan }); draw(); });
  on("started", () => { learn({ id, status: "running" }); draw(); });
  on("released", () => { learn({ id, status: "planned" }); draw(); });
  on("step", (progress) => { learn({ id, status: "running", progress }); draw(); });
  on("preview", (preview) => { learn({ id, status: "running", preview }); draw(); });
  on("finished", (job) => { learn({ ...job, id }); draw(); });
  stream.onerror = () => { // closed for good: the next look attaches again if the job still runs
    if (stream.readyState === EventSource.CLOSED && streams.get(id) === stream) streams.delete(id);
  };
}

async function generate() {
  if ($("generate").disabled) return;
  fail("");
  const request = {};
  for (const [name, value] of new FormData(form)) {
    if (name === "random" || (value === "" && !name.endsWith("prompt"))) continue;
    request[name] = NUMBERS.includes(name) ? Number(value) : value;
  }
  if (request.format === "lossless") Object.assign(request, { format: "webp", lossless: true });
  const wrong = [...form.elements].find((field) => field.willValidate && !field.checkValidity());
  if (wrong) return fail(`${wrong.labels[0].textContent.trim()}: ${wrong.validationMessage}`, wrong.name);
  $("generate").disabled = true;
  try {
    const job = await call("/api/jobs", request);
    learn({ ...job, request });
    order.unshift(job.id);
    show(job.id);
    announce("In the queue");
  } catch (error) {
    fail(error instanceof Refused ? error.message : "Darkroom can't be reached; nothing was queued.", error.path);
    if (!(error instanceof Refused)) lookAtService();
  } finally {
    $("generate").disabled = !form.model.value;
  }
}

async function cancel() {
  $("cancel").disabled = true;
  try {
    await call(`/api/jobs/${shown}/cancel`, {});
    learn(await call(`/api/jobs/${shown}`));
  } catch (error) {
    fail(error instanceof Refused ? error.message : "Darkroom can't be reached; the job was not cancelled.");
  }
  draw();
}

// --- drawing ---------------------------------------------------------------------------------------------------------

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

const announce = (text) => { $("live").textContent = text; };
const details = (job) => job.plan ?? job.result?.plan ?? job.request ?? {};
const title = (job) => details(job).prompt?.slice(0, 120) || "no prompt";

function fail(message, path = "") {
  $("error").hidden = !message;
  $("error").textContent = message;
  for (const field of form.elements) field.removeAttribute("aria-invalid");
  const field = message && form.elements[path?.replace(/^\$\.?/, "")];
  if (field) {
    field.setAttribute("aria-invalid", "true");
    field.focus();
  }
}

function draw() {
  follow();
  drawStage();
  drawGallery();
}

function show(id) {
  shown = id;
  history.replaceState(null, "", `#${id}`);
  draw();
  if (matchMedia("(max-width: 860px)").matches) $("stage").scrollIntoView(); // there it lies below the form
}

function drawModelPicture() { // the chosen model's first picture, if it has one
  const model = models?.find(({ sha256 }) => sha256 === form.model.value);
  const source = model?.pictures ? `/api/images/${model.sha256}.webp?quality=low` : "";
  $("model-picture").hidden = !source;
  if (source && $("model-picture").getAttribute("src") !== source) $("model-picture").src = source;
}

let drawn = "";
function drawStage(again = false) {
  const job = jobs.get(shown);
  $("cancel").disabled = !job || ended(job);
  const key = `${shown} ${job?.status} ${Boolean(job && details(job).prompt)} ${job?.result?.images?.length}`;
  if (again || key !== drawn) {
    drawn = key;
    $("stage").replaceChildren(...(job ? ended(job) ? endedStage(job) : runningStage(job) : emptyStage()));
  }
  if (job && !ended(job)) drawProgress(job);
}

function emptyStage() {
  const empty = (head, ...text) => [el("div", { class: "empty" }, el("strong", {}, head), el("p", {}, ...text))];
  if (!models) return empty("One moment", "Looking for models.");
  if (form.model.value) return empty("Ready when you are", "Describe a picture and press Generate.");
  return empty("No checkpoint yet", "Drop a ", el("code", {}, ".safetensors"),
    " into the models folder. It is found, checked and listed here by itself; no restart is needed.");
}

function runningStage(job) {
  return [
    el("div", { class: "status" }, el("strong", {}, WORDS[job.status]), el("span", { id: "numbers" })),
    el("progress", { id: "progress", max: "1", "aria-label": "Progress of the job" }),
    el("div", { class: "frame" }, el("span", { id: "waiting" }), el("img", { id: "preview", alt: "Preview", hidden: "" })),
    el("p", { class: "prompt" }, title(job)),
  ];
}

function drawProgress({ status, progress, preview }) {
  if (progress) {
    const { step, steps, image, images, rate, eta, stage } = progress;
    $("progress").value = (image * steps + step) / Math.max(1, images * steps);
    const parts = stage && stage !== "denoising" ? [stage] : [`step ${step} of ${steps}`];
    if (images > 1) parts.push(`image ${image + 1} of ${images}`);
    if (rate > 0) parts.push(`${rate.toFixed(rate < 10 ? 1 : 0)} steps/s`);
    if (eta > 0) parts.push(`${eta < 90 ? `${Math.ceil(eta)} s` : `${Math.round(eta / 60)} min`} left`);
    $("numbers").textContent = parts.join(" · ");
  } else if (status !== "running") $("progress").value = 0; // without a value the bar would look busy
  $("waiting").textContent = preview ? "" : status === "running" ? "The first preview is on its way" : "Starts as soon as a generator is free";
  if (preview) {
    const source = `data:image/jpeg;base64,${preview.jpeg}`;
    if ($("preview").src !== source) $("preview").src = source;
    $("preview").hidden = false;
  }
}

function endedStage(job) {
  const asked = details(job);
  const images = job.result?.images ?? [];
  const parts = [el("div", { class: "status" }, el("strong", {}, WORDS[job.status]))];
  const error = job.result?.error;
  if (job.status !== "succeeded") parts.push(el("p", { class: job.status === "cancelled" ? "hint" : "bad" }, error || "No reason was given."));
  parts.push(el("div", { class: "pictures" }, ...images.map((image) => figure(image, asked))));
  parts.push(el("p", { class: "prompt" }, asked.prompt ?? ""));
  parts.push(el("div", { class: "tools" }, el("button", { type: "button", onclick: () => fill(asked) }, "Use these settings")));
  if (images.length) parts.push(infotexts(images));
  return parts;
}

function figure(image, asked) {
  const picture = el("img", { src: image.url, alt: asked.prompt || "Generated picture", width: image.width, height: image.height });
  const reuse = () => { form.random.checked = false; form.seed.value = image.seed; keep(); form.seed.focus(); };
  return el("figure", {},
    el("a", { href: image.url, target: "_blank", rel: "noopener", title: "Open at full size" }, picture),
    el("figcaption", {}, `${image.width} × ${image.height}`, el("span", {}, `Seed ${image.seed}`),
      el("button", { type: "button", onclick: reuse }, "Reuse seed"),
      el("a", { href: image.url, download: "" }, "Download")));
}

function infotexts(images) { // what the files hold, read when somebody looks
  const texts = images.map(() => el("pre", {}));
  const read = ({ target }) => target.open && images.forEach(async ({ url }, n) => {
    const response = await fetch(`${url}.txt`).catch(() => ({}));
    texts[n].textContent = response.ok ? await response.text() : "The picture's file can't be read now.";
  });
  return el("details", { ontoggle: read }, el("summary", {}, "Infotext"), ...texts);
}

function drawGallery() {
  $("nothing").hidden = order.length > 0;
  for (const [place, id] of order.entries()) {
    const job = jobs.get(id);
    const image = job.result?.images?.[0];
    const key = `${job.status} ${image?.url} ${title(job)}`;
    let entry = thumbnails.get(id);
    if (entry?.key !== key) {
      entry = { key, item: entry?.item ?? el("li", {}, el("button", { type: "button", onclick: () => show(id) })) };
      thumbnails.set(id, entry);
      const button = entry.item.firstChild;
      button.dataset.status = job.status;
      button.setAttribute("aria-label", `${WORDS[job.status]}: ${title(job)}`);
      button.title = title(job);
      const count = job.result?.images?.length ?? 0;
      button.replaceChildren(image ? el("img", { src: image.tiers?.low ?? image.url, alt: "", loading: "lazy" }) : el("span", {}, WORDS[job.status]),
        ...(count > 1 ? [el("small", {}, `${count}`)] : []));
    }
    entry.item.firstChild.setAttribute("aria-pressed", String(id === shown));
    if ($("gallery").children[place] !== entry.item) $("gallery").insertBefore(entry.item, $("gallery").children[place] ?? null);
  }
  while ($("gallery").children.length > order.length) $("gallery").lastChild.remove();
}

// --- the form --------------------------------------------------------------------------------------------------------

function saved() {
  try {
    return JSON.parse(localStorage.getItem("darkroom.form")) ?? {};
  } catch {
    return {};
  }
}

function keep() {
  form.seed.disabled = form.random.checked;
  const filled = (field) => field.name && field.type !== "checkbox" && (field.value || field.tagName !== "SELECT");
  const values = Object.fromEntries([...form.elements].filter(filled).map((field) => [field.name, field.value]));
  try {
    localStorage.setItem("darkroom.form", JSON.stringify({ ...saved(), ...values, random: form.random.checked }));
  } catch { /* private windows may refuse; the form works without */ }
}

function fill(values) {
  for (const [name, value] of Object.entries(values)) {
    const field = form.elements[name];
    if (!field || field === form.random || value === null) continue;
    const text = String(name === "model" ? value.sha256 ?? value : value);
    if (field.tagName === "SELECT" && ![...field.options].some((option) => option.value === text && !option.disabled)) continue;
    field.value = text;
  }
  if (values.lossless) form.format.value = "lossless";
  if (values.seeds) form.n.value = values.seeds.length;
  if (values.seeds || values.random === false) {
    form.seed.value = values.seeds?.[0] ?? form.seed.value;
    form.random.checked = false;
  }
  keep();
  drawModelPicture();
}

form.addEventListener("submit", (event) => { event.preventDefault(); generate(); });
form.addEventListener("input", () => { keep(); drawModelPicture(); });
$("model-picture").addEventListener("error", () => { $("model-picture").hidden = true; });
form.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); generate(); }
});
$("cancel").addEventListener("click", cancel);
$("swap").addEventListener("click", () => { [form.width.value, form.height.value] = [form.height.value, form.width.value]; keep(); });
window.addEventListener("focus", look);
document.addEventListener("visibilitychange", look);

fill(saved());
drawStage();
await look();
setInterval(look, POLL_MS);
