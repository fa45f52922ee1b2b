"use strict";

// The page sends one message and gets one answer. It takes its next step when the last one is
// shown, so that a slow world makes the dream slow and nothing else.

const at = (id) => document.getElementById(id);
const SHOWN_STEPS = 200; // of the plots
const OBSERVATION = "observation"; // what can be edited, beside the leaves of the state

let socket = null;
let waiting = []; // functions that take the answers, in order
let about = null; // what the server said about the world
let now = null; // the moment that is shown
let past = []; // figures of the moments that are kept, by step
let future = 0; // last step that can be gone to
let playing = false;
let stepping = false;
const held = new Map(); // key -> what holds it; the last one wins
const values = []; // of the controls, in order
const written = []; // functions that write the numbers beside the plots
const drawn = []; // functions that draw the plots

// ---------------------------------------------------------------- the connection

function connect() {
  const url = new URL("socket", location.href);
  url.protocol = url.protocol.replace("http", "ws");
  socket = new WebSocket(url);
  socket.onopen = begin;
  socket.onmessage = (event) => {
    const answer = JSON.parse(event.data);
    const take = waiting.shift();
    if (take) take(answer);
    else say(answer.text ?? "");
  };
  socket.onclose = () => {
    pause();
    waiting = [];
    if (at("message").textContent === "") say("The connection is closed: dreamgym play has stopped. Start it again and open the address that it prints.");
    for (const each of document.querySelectorAll("button, input, select")) each.disabled = true;
  };
}

function ask(message) {
  return new Promise((resolve) => {
    waiting.push(resolve);
    socket.send(JSON.stringify(message));
  });
}

// Asks, and shows the moment that comes back; an error is shown instead.
async function show(message) {
  const answer = await ask(message);
  if (answer.kind === "error") {
    pause();
    say(answer.text);
    return null;
  }
  say("");
  if (answer.kind === "moment") take(answer);
  return answer;
}

function say(text) {
  at("message").textContent = text;
}

// ---------------------------------------------------------------- the start

async function begin() {
  about = await ask({ do: "hello" });
  if (about.kind === "error") return say(about.text);
  document.title = `${about.world} · dreamgym play`;
  at("world").textContent = about.world;
  at("about").textContent = [about.family, about.env && `of ${about.env}`].filter(Boolean).join(" ");
  fill("player", about.players);
  fill("start", about.starts.map((each) => each.name));
  at("seed").value = about.seed;
  at("horizon").max = 200;
  at("horizon").value = toHorizonSlider(about.horizon);
  at("fps").max = about.most_fps;
  at("fps").value = about.fps;
  at("horizon-out").textContent = about.horizon;
  at("fps-out").textContent = about.fps;
  startChosen();
  const editable = about.leaves.map((each) => each.name);
  fill("leaf", about.observations.length ? [OBSERVATION, ...editable] : editable);
  at("place").hidden = !about.can_be_placed;
  at("uncertainty-chart").hidden = !about.has_uncertainty;
  at("dream-frame").hidden = !about.has_picture;
  at("dream-strips").hidden = about.has_picture;
  at("observation-panel").hidden = !about.observations.length || !about.has_picture;
  at("real-key").hidden = !about.has_reality;
  // Where neither side has a picture, both are in the same plots.
  const alone = !about.has_reality || !(about.has_picture || about.has_real_picture);
  at("real-pane").hidden = alone;
  document.querySelector(".stage").classList.toggle("alone", alone);
  at("alone").hidden = about.has_reality;
  at("alone").textContent = `No real environment beside it: ${about.without_reality}.`;
  buildControls();
  buildPlots();
  settle();
  await reset();
  document.body.dataset.ready = "yes";
  run();
}

function fill(id, names) {
  at(id).replaceChildren(...names.map((name) => new Option(name, name)));
}

async function reset() {
  held.clear();
  release();
  const row = Number(at("row").value);
  const seed = Math.max(0, Math.floor(Number(at("seed").value)) || 0);
  at("seed").value = seed;
  return show({ do: "reset", seed, start: at("start").value, row: row < 0 ? null : row });
}

// ---------------------------------------------------------------- playing

function pause() {
  playing = false;
  at("play").textContent = "▶ Play";
  editor();
}

async function play() {
  if (now === null) return;
  if (now.done) await reset();
  playing = true;
  at("play").textContent = "Pause";
}

// Takes steps at the pace that is set, one after the other.
async function run() {
  let due = performance.now();
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, Math.max(0, due - performance.now())));
    due = Math.max(due + 1000 / Number(at("fps").value), performance.now());
    const person = at("player").value === "you";
    const waits = person && at("wait-for-key").checked && !held.size;
    if (playing && !waits && !stepping) await step();
    if (socket.readyState !== WebSocket.OPEN) return;
  }
}

async function step() {
  if (stepping || now === null || now.done) return;
  stepping = true;
  const person = at("player").value === "you";
  await show(person ? { do: "step", action: action() } : { do: "step" });
  stepping = false;
  if (now.done) pause();
}

async function go(target) {
  pause();
  const first = now.first;
  await show({ do: "go", step: Math.min(Math.max(target, first), future) });
}

// ---------------------------------------------------------------- what is shown

function take(moment) {
  now = moment;
  future = moment.last;
  if (moment.past) {
    past = moment.past;
    at("seed").value = moment.seed;
    if (at("start").value !== moment.start) {
      at("start").value = moment.start; // a branch of an episode that began elsewhere
      startChosen();
    }
    rowShown(moment.row);
  }
  // A future that was played before stays, until a step leads elsewhere.
  past = past.filter((each) => each.step !== moment.step && each.step <= moment.last);
  past.push({ ...moment, frame: null, real: moment.real && { ...moment.real, frame: null } });
  past.sort((one, other) => one.step - other.step);
  picture(at("dream-frame"), moment.frame);
  const real = moment.real;
  picture(at("real-frame"), real?.frame);
  const note = at("real-note");
  note.hidden = Boolean(real?.frame);
  note.textContent = real
    ? "Nothing here can draw the real environment; its observations are in the plots."
    : "The real environment cannot begin where this dream begins. Choose the start “real” to see both.";
  const together = real && at("real-pane").hidden;
  at("dream-figures").textContent = `return ${short(moment.return)}`
    + (together ? ` · real ${short(real.return)} (dashed)` : "");
  at("real-figures").textContent = real ? `return ${short(real.return)}` : "";
  over("dream-over", moment.done, `${moment.done} at step ${moment.step}`);
  over("real-over", real?.done, real?.done);
  at("reward-out").textContent = short(moment.reward);
  at("termination-out").textContent = short(moment.termination);
  at("uncertainty-out").textContent = short(moment.uncertainty);
  const time = at("time");
  time.min = moment.first;
  time.max = moment.last;
  time.value = moment.step;
  at("time-out").textContent = `${moment.step} / ${moment.last}`;
  if (at("player").value !== "you" && moment.action) shownAction(moment.action);
  for (const each of written) each();
  document.body.dataset.step = moment.step; // when all but the plots is shown
  redraw();
  if (!playing) editor();
}

function picture(image, url) {
  image.hidden = !url;
  if (!url) return;
  image.onload = () => {
    image.classList.toggle("pixels", image.naturalWidth <= 160);
    image.parentElement.style.aspectRatio = image.naturalWidth / image.naturalHeight;
  };
  image.src = url;
}

function over(id, shown, text) {
  at(id).hidden = !shown;
  at(id).textContent = text;
}

function short(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size !== 0 && size < 0.001) return value.toExponential(1);
  return size >= 1000 ? value.toFixed(0) : String(Number(value.toPrecision(4)));
}

// ---------------------------------------------------------------- the controls

function buildControls() {
  const groups = about.controls.map((control, index) =>
    control.kind === "choice" ? choice(control, index) : axis(control, index));
  at("controls").replaceChildren(...groups);
  const axes = about.controls.some((each) => each.kind === "axis");
  at("spring-label").hidden = !axes;
  at("hint").textContent = axes
    ? "Keys: as on the sliders. Or drag on the picture of the dream. Space plays and pauses, R starts again, B branches, Backspace steps back."
    : "Keys: as on the buttons. Or hold a side of the picture of the dream. Space plays and pauses, R starts again, B branches, Backspace steps back.";
}

function choice(control, index) {
  values[index] = control.rest ?? 0;
  const group = document.createElement("div");
  group.className = "choice";
  group.setAttribute("role", "group");
  group.setAttribute("aria-label", control.name || "action");
  control.labels.forEach((label, option) => {
    const button = document.createElement("button");
    button.append(label);
    const keys = control.keys[option].map(keyName).join(" ");
    if (keys) button.append(Object.assign(document.createElement("kbd"), { textContent: keys }));
    const name = `control ${index} ${option}`;
    button.onpointerdown = (event) => {
      event.preventDefault();
      button.setPointerCapture(event.pointerId);
      hold(name, { control: index, value: option });
    };
    button.onpointerup = button.onpointercancel = () => let_go(name);
    button.onkeydown = (event) => { if (event.key === "Enter") hold(name, { control: index, value: option }); };
    button.onkeyup = () => let_go(name);
    button.onblur = () => let_go(name);
    button.oncontextmenu = (event) => event.preventDefault();
    group.append(button);
  });
  return group;
}

function axis(control, index) {
  values[index] = control.rest;
  const name = document.createElement("span");
  name.textContent = control.name;
  const keys = control.keys.filter(Boolean).map(keyName).join(" ");
  if (keys) name.append(" ", Object.assign(document.createElement("kbd"), { textContent: keys }));
  const slider = document.createElement("input");
  Object.assign(slider, {
    type: "range", min: control.low, max: control.high,
    step: control.integer ? 1 : (control.high - control.low) / 200,
  });
  slider.value = control.rest;
  slider.setAttribute("aria-label", control.name);
  slider.oninput = () => {
    hold(`control ${index}`, { control: index, value: Number(slider.value) });
  };
  slider.onpointerup = slider.onpointercancel = slider.onblur = () => let_go(`control ${index}`);
  const output = document.createElement("output");
  output.textContent = short(control.rest);
  const label = document.createElement("label");
  label.className = "named";
  label.append(name, slider, output);
  return label;
}

function keyName(key) {
  return { ArrowLeft: "←", ArrowRight: "→", ArrowUp: "↑", ArrowDown: "↓" }[key] ?? key.toUpperCase();
}

function hold(name, what) {
  held.delete(name); // so that it is the last one
  held.set(name, what);
  settle();
}

function let_go(name) {
  if (held.delete(name)) {
    release();
    settle();
  }
}

// Sliders without a key or finger on them go back to rest, if they spring.
function release() {
  about.controls.forEach((control, index) => {
    const pressed = [...held.values()].some((each) => each.control === index);
    if (pressed) return;
    if (control.kind === "choice") values[index] = control.rest ?? values[index];
    else if (at("spring").checked) values[index] = control.rest;
  });
}

// Brings the values up to what is held, and shows them.
function settle() {
  const reached = new Map();
  for (const each of held.values()) {
    const control = about.controls[each.control];
    const before = reached.get(each.control);
    // Opposite keys of a slider cancel out.
    const opposite = control.kind === "axis" && each.key && before?.key && before.value !== each.value;
    reached.set(each.control, opposite ? { key: true, value: control.rest } : each);
  }
  for (const [index, each] of reached) values[index] = each.value;
  shownAction(values);
}

function shownAction(shown) {
  about.controls.forEach((control, index) => {
    const element = at("controls").children[index];
    if (control.kind === "choice") {
      [...element.children].forEach((button, option) => {
        button.classList.toggle("held", option === shown[index]);
        button.setAttribute("aria-pressed", option === shown[index]);
      });
    } else {
      const slider = element.querySelector("input");
      if (!slider.matches(":active")) slider.value = shown[index];
      element.querySelector("output").textContent = short(shown[index]);
    }
  });
}

function action() {
  return [...values];
}

// Returns what a key does: [control, value] pairs.
function meaning(key) {
  const found = [];
  about.controls.forEach((control, index) => {
    if (control.kind === "choice") {
      const option = control.keys.findIndex((keys) => keys.includes(key));
      if (option >= 0) found.push([index, option]);
    } else {
      if (control.keys[0] === key) found.push([index, control.low]);
      if (control.keys[1] === key) found.push([index, control.high]);
    }
  });
  return found;
}

function press(key) {
  const found = meaning(key);
  for (const [control, value] of found) hold(`key ${key} ${control}`, { control, value, key: true });
  return found.length > 0;
}

function unpress(key) {
  for (const [control] of meaning(key)) let_go(`key ${key} ${control}`);
}

document.addEventListener("keydown", (event) => {
  if (about === null || event.ctrlKey || event.metaKey || event.altKey) return;
  const target = event.target;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (target.matches("select, input[type=number]") && key !== "Escape") return;
  if (target.matches("input[type=range]") && /^(Arrow|Home|End|Page)/.test(key)) return; // its own keys
  const onButton = target.matches("button, summary, input[type=checkbox]");
  const does = {
    " ": () => (playing ? pause() : play()),
    ".": () => { pause(); step(); },
    r: () => at("again").click(),
    n: () => at("next").click(),
    b: () => at("branch").click(),
    Backspace: () => go(now.step + (event.shiftKey ? 1 : -1)),
    Escape: () => target.blur(),
  };
  if (press(key)) event.preventDefault();
  else if (does[key] && !(onButton && (key === " " || key === "Enter"))) {
    event.preventDefault();
    if (!event.repeat || key === "Backspace") does[key]();
  }
});

document.addEventListener("keyup", (event) => {
  if (about === null) return;
  unpress(event.key.length === 1 ? event.key.toLowerCase() : event.key);
});

addEventListener("blur", () => {
  if (about === null) return;
  held.clear();
  release();
  settle();
});

// A button that was clicked does not keep the focus: Space plays, whatever was clicked before.
document.addEventListener("pointerup", (event) => {
  if (event.target.matches("button, input[type=range], input[type=checkbox]")) {
    setTimeout(() => event.target.blur());
  }
});

// Dragging on the picture moves the first two sliders; a side of it is an arrow key.
const screen_ = at("dream-screen");
let sides = [];

function drag(event) {
  const box = screen_.getBoundingClientRect();
  const x = Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1);
  const y = Math.min(Math.max((event.clientY - box.top) / box.height, 0), 1);
  const axes = about.controls.map((control, index) => [control, index])
    .filter(([control]) => control.kind === "axis").slice(0, 2);
  [x, 1 - y].slice(0, axes.length).forEach((share, which) => {
    const [control, index] = axes[which];
    const value = control.low + share * (control.high - control.low);
    hold(`drag ${index}`, { control: index, value: control.integer ? Math.round(value) : value });
  });
  if (axes.length) return;
  const wanted = [];
  if (x < 0.4) wanted.push("ArrowLeft");
  if (x > 0.6) wanted.push("ArrowRight");
  if (y < 0.3 && x >= 0.25 && x <= 0.75) wanted.push("ArrowUp");
  if (y > 0.7 && x >= 0.25 && x <= 0.75) wanted.push("ArrowDown");
  sides.filter((key) => !wanted.includes(key)).forEach(unpress);
  wanted.filter((key) => !sides.includes(key)).forEach(press);
  sides = wanted;
}

function undrag() {
  sides.forEach(unpress);
  sides = [];
  for (const name of [...held.keys()]) if (name.startsWith("drag")) let_go(name);
}

screen_.onpointerdown = (event) => {
  if (about === null) return;
  event.preventDefault();
  screen_.setPointerCapture(event.pointerId);
  drag(event);
};
screen_.onpointermove = (event) => { if (event.buttons) drag(event); };
screen_.onpointerup = screen_.onpointercancel = undrag;

// ---------------------------------------------------------------- the plots

let colours = {};

function readColours() {
  const style = getComputedStyle(document.documentElement);
  for (const name of ["dream", "real", "line", "text", "faint"]) {
    colours[name] = style.getPropertyValue(`--${name}`).trim();
  }
}

function buildPlots() {
  readColours();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    readColours();
    redraw();
  });
  addEventListener("resize", redraw);
  drawn.push(() => plot(at("reward"), [
    ["real", (each) => each.real?.reward, true], ["dream", (each) => each.reward],
  ])); // the start has no reward: null
  drawn.push(() => plot(at("termination"), [["dream", (each) => each.termination]], [0, 1]));
  drawn.push(() => plot(at("uncertainty"), [["dream", (each) => each.uncertainty]]));
  if (!about.has_picture) return void drawn.push(() => strips(at("dream-strips")));
  const charts = about.observations.map((observation, index) => {
    const chart = document.createElement("div");
    chart.className = "chart";
    const title = document.createElement("p");
    const output = document.createElement("output");
    title.append(observation.name, output);
    const canvas = document.createElement("canvas");
    chart.append(title, canvas);
    written.push(() => { output.textContent = short(now.values[index]); });
    drawn.push(() => plot(canvas, [
      ["real", (each) => each.real?.values[index], true], ["dream", (each) => each.values[index]],
    ]));
    return chart;
  });
  at("observations").replaceChildren(...charts);
}

function draw() {
  if (now !== null) for (const each of drawn) each();
}

const BETWEEN_PLOTS = 100; // milliseconds while playing: the pictures matter more
let drawing = false;
let drawnAt = 0;

// Draws soon, and once for all that happens until then.
function redraw() {
  if (drawing) return;
  drawing = true;
  const wait = playing ? Math.max(0, drawnAt + BETWEEN_PLOTS - performance.now()) : 0;
  setTimeout(() => requestAnimationFrame(() => {
    drawing = false;
    drawnAt = performance.now();
    draw();
  }), wait);
}

function surface(canvas) {
  const scale = devicePixelRatio || 1;
  const width = canvas.clientWidth, height = canvas.clientHeight;
  if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
  }
  const context = canvas.getContext("2d");
  context.setTransform(scale, 0, 0, scale, 0, 0);
  context.clearRect(0, 0, width, height);
  return [context, width, height];
}

function shownPast() {
  return past.filter((each) => each.step <= now.step).slice(-SHOWN_STEPS);
}

// Draws lines [colour, value of a moment, dashed] over the last steps.
function plot(canvas, lines, range = null) {
  if (!canvas.clientWidth) return;
  const [context, width, height] = surface(canvas);
  curves(context, [0, 0, width, height], lines, range);
}

function curves(context, [left, top, width, height], lines, range) {
  const shown = shownPast();
  const numbers = lines.flatMap(([, value]) => shown.map(value)).filter(Number.isFinite);
  if (!numbers.length) return;
  let [low, high] = range ?? [Math.min(...numbers), Math.max(...numbers)];
  // A small ripple on a large number stays small.
  const span = Math.max(high - low, Math.max(Math.abs(low), Math.abs(high)) / 5, 1e-6);
  [low, high] = [(low + high - span) / 2, (low + high + span) / 2];
  const pad = 4;
  const x = (index) => left + pad + (index / Math.max(shown.length - 1, 60)) * (width - 2 * pad);
  const y = (value) => top + height - pad - ((value - low) / (high - low)) * (height - 2 * pad);
  if (low < 0 && high > 0) {
    context.strokeStyle = colours.line;
    context.lineWidth = 1;
    context.setLineDash([]);
    context.beginPath();
    context.moveTo(left, y(0));
    context.lineTo(left + width, y(0));
    context.stroke();
  }
  for (const [colour, value, dashed] of lines) {
    context.strokeStyle = colours[colour];
    context.lineWidth = 1.6;
    context.setLineDash(dashed ? [4, 3] : []);
    context.beginPath();
    let drawing = false;
    shown.forEach((each, index) => {
      const number = value(each);
      if (!Number.isFinite(number)) return void (drawing = false);
      if (drawing) context.lineTo(x(index), y(number));
      else context.moveTo(x(index), y(number));
      drawing = true;
    });
    context.stroke();
    const last = value(shown[shown.length - 1]);
    if (!Number.isFinite(last)) continue;
    context.fillStyle = colours[colour];
    context.beginPath();
    context.arc(x(shown.length - 1), y(last), 2.5, 0, 2 * Math.PI);
    context.fill();
  }
}

// Draws every number of the observation below the other, where there is no picture.
function strips(canvas) {
  if (!canvas.clientWidth) return;
  const [context, width, height] = surface(canvas);
  const count = about.observations.length;
  context.font = "12px system-ui, sans-serif";
  if (!count) {
    context.fillStyle = colours.faint;
    context.textAlign = "center";
    context.fillText("This world decodes no observations: watch reward and termination.", width / 2, height / 2, width - 16);
    return;
  }
  context.textAlign = "left";
  const columns = count > 10 ? 2 : 1;
  const rows = Math.ceil(count / columns);
  about.observations.forEach((observation, index) => {
    const left = Math.floor(index / rows) * (width / columns);
    const top = (index % rows) * (height / rows);
    curves(context, [left + 96, top, width / columns - 100, height / rows], [
      ["real", (each) => each.real?.values[index], true], ["dream", (each) => each.values[index]],
    ], null);
    context.setLineDash([]);
    context.fillStyle = colours.text;
    context.fillText(observation.name, left + 6, top + height / rows / 2 + 4, 86);
  });
}

// ---------------------------------------------------------------- settings

at("play").onclick = () => (playing ? pause() : play());
at("once").onclick = () => { pause(); step(); };
at("back").onclick = () => go(now.step - 1);
at("forth").onclick = () => go(now.step + 1);
at("again").onclick = async () => { await reset(); };
at("next").onclick = async () => {
  at("seed").value = Number(at("seed").value) + 1;
  await reset();
};
at("seed").onchange = async () => { pause(); await reset(); at("seed").blur(); };

let seeking = false, wanted = null;
at("time").oninput = async () => {
  pause();
  wanted = at("time").value;
  if (seeking) return;
  seeking = true; // one request at a time, and the last place is always reached
  let reached = null;
  while (reached !== wanted) {
    reached = wanted;
    await show({ do: "go", step: Number(reached) });
    at("time").value = wanted; // where the slider is held by now
  }
  seeking = false;
};

at("player").onchange = async () => {
  const answer = await show({ do: "set", player: at("player").value });
  if (answer === null) at("player").value = "you";
  at("player").blur();
};

// Sliders of quantities whose size matters more than their difference are logarithmic.
const fromTemperatureSlider = (value) => Number((10 ** (value / 100)).toPrecision(2));
const fromHorizonSlider = (value) => Math.round(10 ** (1 + value / 50));
const toHorizonSlider = (value) => Math.round((Math.log10(value) - 1) * 50);

at("temperature").oninput = () => {
  const temperature = fromTemperatureSlider(at("temperature").value);
  at("temperature-out").textContent = temperature;
  show({ do: "set", temperature });
};
at("horizon").oninput = () => {
  const horizon = fromHorizonSlider(at("horizon").value);
  at("horizon-out").textContent = horizon;
  show({ do: "set", horizon });
};
at("fps").oninput = () => { at("fps-out").textContent = at("fps").value; };

function startChosen() {
  const rows = about.starts.find((each) => each.name === at("start").value).rows;
  at("row").max = rows - 1;
  at("row").disabled = !rows;
  at("row").value = -1;
  rowShown();
}
function rowShown(drawn = null) {
  const row = Number(at("row").value);
  at("row-out").textContent = row >= 0 ? row : drawn === null ? "by the seed" : `${drawn}, by the seed`;
}
at("start").onchange = async () => { startChosen(); pause(); await reset(); at("start").blur(); };
at("row").oninput = () => rowShown();
at("row").onchange = async () => { pause(); await reset(); };

// ---------------------------------------------------------------- branches

at("branch").onclick = async () => {
  const answer = await show({ do: "branch" });
  if (answer === null) return;
  const card = document.createElement("div");
  card.className = "branch";
  if (answer.frame) card.append(Object.assign(document.createElement("img"), { src: answer.frame, alt: "" }));
  const text = document.createElement("p");
  text.textContent = `step ${answer.step} · return ${short(answer.return)}`;
  const button = (label, title, act) => {
    const made = document.createElement("button");
    made.textContent = label;
    made.title = title;
    made.onclick = act;
    return made;
  };
  const number = () => [...at("branches").children].indexOf(card);
  const back = (same_noise) => async () => {
    pause();
    await show({ do: "return", branch: number(), same_noise });
  };
  const row = document.createElement("div");
  row.className = "row";
  row.append(
    button("Other future", "Go on from here with new chances: another future", back(false)),
    button("Same", "Go on from here: the same actions have the same future", back(true)),
    button("×", "Forget this branch", async () => {
      if (await show({ do: "drop", branch: number() })) card.remove();
      at("branches-panel").hidden = !at("branches").children.length;
    }),
  );
  card.append(text, row);
  at("branches").append(card);
  at("branches-panel").hidden = false;
};

// ---------------------------------------------------------------- editing

let firstLatent = 0;
let editing = false; // an answer is under way

async function editor() {
  if (!at("edit").open || about === null || now === null || editing) return;
  editing = true;
  const name = at("leaf").value;
  let shown;
  if (name === OBSERVATION) {
    const chosen = about.observations.slice(firstLatent, firstLatent + 16);
    shown = {
      first: firstLatent,
      values: now.values.slice(firstLatent, firstLatent + 16),
      low: chosen.map((each) => each.low),
      high: chosen.map((each) => each.high),
      names: chosen.map((each) => each.name),
      size: about.observations.length,
    };
  } else {
    shown = await ask({ do: "latent", leaf: name, first: firstLatent });
    shown.size = about.leaves.find((each) => each.name === name).size;
  }
  editing = false;
  if (shown.kind === "error") return say(shown.text);
  const last = shown.first + shown.values.length - 1;
  at("leaf-range").textContent = `${shown.first}–${last} of ${shown.size}`;
  at("fewer").disabled = shown.first === 0;
  at("more").disabled = last + 1 >= shown.size;
  if (at("latents").contains(document.activeElement) && at("latents").dataset.of === `${name} ${shown.first}`) {
    return; // a slider that is being moved stays
  }
  at("latents").dataset.of = `${name} ${shown.first}`;
  at("latents").replaceChildren(...shown.values.map((value, index) => latent(name, shown, index, value)));
}

function latent(leaf, shown, index, value) {
  const [low, high] = [shown.low[index], shown.high[index]];
  const margin = Math.max((high - low) / 2, 1e-3); // beyond what was seen
  const slider = document.createElement("input");
  Object.assign(slider, { type: "range", min: low - margin, max: high + margin, step: "any" });
  slider.value = value;
  const name = document.createElement("span");
  name.textContent = shown.names?.[index] ?? `${leaf}[${shown.first + index}]`;
  slider.setAttribute("aria-label", name.textContent);
  const output = document.createElement("output");
  output.textContent = short(value);
  let sending = false;
  slider.oninput = async () => {
    output.textContent = short(Number(slider.value));
    if (sending) return;
    sending = true;
    let sent = null;
    while (sent !== slider.value) {
      sent = slider.value;
      const edit = { index: shown.first + index, value: Number(sent) };
      await show(leaf === OBSERVATION ? { do: "edit-observation", ...edit } : { do: "edit-latent", leaf, ...edit });
    }
    sending = false;
  };
  const label = document.createElement("label");
  label.className = "named";
  label.append(name, slider, output);
  return label;
}

at("edit").ontoggle = () => { if (at("edit").open) { pause(); editor(); } };
at("leaf").onchange = () => { firstLatent = 0; editor(); at("leaf").blur(); };
at("fewer").onclick = () => { firstLatent = Math.max(0, firstLatent - 16); editor(); };
at("more").onclick = () => { firstLatent += 16; editor(); };
at("place").onclick = () => show({ do: "place" });

// ---------------------------------------------------------------- saving

async function save(message) {
  pause();
  at("saved").textContent = "Saving…";
  const answer = await show(message);
  at("saved").textContent = answer === null ? "" : `Saved ${answer.paths.join(" and ")}`;
}
at("save-clip").onclick = () => save({ do: "save-clip", fps: Number(at("fps").value) });
at("save-episode").onclick = () => save({ do: "save-episode" });

at("temperature-out").textContent = 1;
connect();
