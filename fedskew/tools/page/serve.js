"use strict";
// Sends one picture to the machine that this page came from and shows what the model says of it. Text from the model is
// only ever set as text.
const find = (id) => document.getElementById(id);
const form = find("ask"), submit = form.querySelector("button"), limit = Number(document.body.dataset.maxBytes);
const TYPES = ["image/jpeg", "image/png"];
let picture = null, address = null;

function element(name, text, parent) {
  const made = document.createElement(name);
  made.textContent = text;
  parent.append(made);
  return made;
}

function fail(message) {
  find("error").textContent = message;
  find("error").hidden = false;
  find("answer").hidden = true;
}

function choose(file) {
  find("error").hidden = true;
  if (!file) return;
  picture = null;
  submit.disabled = true;
  if (!TYPES.includes(file.type)) return fail(`${file.name} is no JPEG or PNG.`);
  if (file.size > limit) return fail(`${file.name} has ${(file.size / 1048576).toFixed(1)} MiB, more than the ${limit / 1048576} that are taken.`);
  picture = file;
  submit.disabled = false;
  find("chosen").textContent = file.name;
}

for (const id of ["file", "camera"]) find(id).addEventListener("change", (event) => choose(event.target.files[0]));
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    find("drop").classList.toggle("over", name === "dragover");
    if (name === "drop") choose(event.dataTransfer.files[0]);
  });
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  if (!picture) return;
  const asked = picture, known = Object.fromEntries([...new FormData(form)].filter(([, value]) => typeof value === "string" && value));
  submit.disabled = true;
  submit.textContent = "The model is looking …";
  find("error").hidden = true;
  try {
    const headers = { "Content-Type": asked.type, "X-Fedskew-Metadata": encodeURIComponent(JSON.stringify(known)) };
    const response = await fetch("/predict", { method: "POST", headers, body: asked });
    const found = await response.json();
    if (response.ok) show(found, asked);
    else fail(found.error);
  } catch {
    fail("The model cannot be reached, or the picture can no longer be read.");
  } finally {
    submit.disabled = false;
    submit.textContent = "Ask the model";
  }
});

function show(found, asked) {
  if (address) URL.revokeObjectURL(address);
  address = URL.createObjectURL(asked);
  find("shown").src = address;
  find("decision").textContent = `${found.decision}, ${percent(found.probabilities[found.decision])}`;
  const rows = find("shares").tBodies[0];
  rows.replaceChildren();
  for (const [name, share] of Object.entries(found.probabilities)) {
    const row = element("tr", "", rows);
    row.classList.toggle("decided", name === found.decision);
    element("th", name, row).scope = "row";
    element("td", percent(share), row);
    const bar = element("div", "", element("td", "", row));
    bar.className = "bar";
    bar.style.width = `${100 * share}%`;
  }
  find("notes").replaceChildren();
  for (const note of found.notes) element("li", note, find("notes"));
  if (found.unknown.length) element("li", `taken as unknown: ${found.unknown.join(", ")}`, find("notes"));
  if (found.maps_note) element("li", found.maps_note, find("notes"));
  showMaps(found);
  find("answer").hidden = false;
}

const percent = (share) => `${(100 * share).toFixed(1)} %`;

function showMaps(found) {
  const map = find("map"), choices = find("choices");
  for (const [side, share] of Object.entries(found.view)) map.style[side] = `${100 * share}%`;
  choices.replaceChildren();
  find("maps").hidden = !found.maps.length;
  const pick = (one) => {
    map.hidden = !one;
    if (one) map.src = one.image;
    map.alt = one ? one.caption : "";
    find("caption").textContent = one ? `${one.caption}. Bright: large norms. The frame is what the model sees.` : "";
  };
  for (const one of found.maps.length ? [null, ...found.maps] : []) {
    const label = element("label", "", choices), radio = document.createElement("input");
    Object.assign(radio, { type: "radio", name: "shown-map", checked: one === (found.maps[0] ?? null) });
    radio.addEventListener("change", () => pick(one));
    label.append(radio, one ? one.caption : "none");
  }
  pick(found.maps[0]);
}

find("opacity").addEventListener("input", (event) => { find("map").style.opacity = event.target.value / 100; });
find("map").style.opacity = find("opacity").value / 100;
