"use strict";

/* A link to something in a folded section opens it. */
function reveal(hash) {
  const name = decodeURIComponent(hash.slice(1)).split("?")[0];
  const there = name && document.getElementById(name);
  if (!there) return;
  for (let each = there; each; each = each.parentElement.closest("details")) {
    if (each.localName === "details") each.open = true;
  }
  there.scrollIntoView();
}

/* So does printing, until it is done. */
function unfoldForPrint() {
  for (const each of document.querySelectorAll("details:not([open])")) {
    each.open = true;
    each.dataset.printed = "";
  }
}

function foldAgain() {
  for (const each of document.querySelectorAll("details[data-printed]")) {
    each.open = false;
    delete each.dataset.printed;
  }
}

async function copyCommand(button) {
  const command = button.previousElementSibling;
  try {
    await navigator.clipboard.writeText(command.textContent);
    button.textContent = "Copied";
  } catch {
    /* a frame may not write to the clipboard */
    getSelection().selectAllChildren(command);
    button.textContent = "Selected";
  }
}

/* Beside the page the contents are open, above it they are a menu. */
function fitContents(menu) {
  const isNarrow = matchMedia("(max-width: 1000px)");
  const fit = () => {
    menu.open = !isNarrow.matches;
  };
  isNarrow.addEventListener("change", fit);
  menu.addEventListener("click", (event) => {
    if (event.target.closest("a") && isNarrow.matches) menu.open = false;
  });
  fit();
}

document.querySelectorAll(".contents details").forEach(fitContents);
document.querySelectorAll(".copy").forEach((button) => {
  button.hidden = false;
  button.addEventListener("click", () => copyCommand(button));
});
document.addEventListener("click", (event) => {
  const link = event.target.closest?.('a[href^="#"]');
  if (link) reveal(link.getAttribute("href"));
});
addEventListener("hashchange", () => reveal(location.hash));
addEventListener("beforeprint", unfoldForPrint);
addEventListener("afterprint", foldAgain);
reveal(location.hash);

/* Whole numbers of so many bytes, little-endian, in base64. */
function wholeNumbers(text, size) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  const read = size === 2 ? (at) => view.getInt16(at, true) : (at) => view.getInt32(at, true);
  return Int32Array.from({ length: bytes.length / size }, (_, place) => read(size * place));
}

/* A rule with its draws; losses are null where retention was not measured. */
function drawnRule(rule) {
  const read = (text) => (text === null ? null : wholeNumbers(text, rule.num_bytes));
  return { ...rule, gains: read(rule.gains), losses: read(rule.losses), worst: read(rule.worst) };
}

/* The rule of rankwise/findings/decision.py; a test holds both to the same answers. */
function judge(rule, delta, epsilon, ceiling) {
  const count = rule.labels.length;
  const number = rule.gains.length / count;
  /* margins in the steps of the draws, which are whole: a hair more is still the same step */
  const apart = delta / rule.step + 1e-6;
  const average = 100 * epsilon + 1e-6;
  const most = 100 * ceiling + 1e-6;
  const zeros = () => new Array(count).fill(0);
  const hits = { better: zeros(), keeps: zeros(), near: zeros() };
  let none = 0;
  let noneBetter = 0;
  for (let draw = 0; draw < number; draw++) {
    const at = draw * count;
    let best = -Infinity;
    let isAny = false;
    let isBetter = false;
    const kept = [];
    for (let own = 0; own < count; own++) {
      const gain = rule.gains[at + own];
      const helps = !rule.has_base || gain > 0;
      const keeps = rule.losses === null || (rule.losses[at + own] <= average && rule.worst[at + own] <= most);
      kept.push(keeps);
      hits.better[own] += helps;
      hits.keeps[own] += keeps;
      isBetter ||= helps;
      isAny ||= helps && keeps;
      if (keeps && gain > best) best = gain;
    }
    none += !isAny;
    noneBetter += !isBetter;
    for (let own = 0; own < count; own++) hits.near[own] += rule.gains[at + own] >= best - apart;
  }
  const states = (found) =>
    found.map((hit) => {
      const share = hit / (number + 1);
      return share >= rule.level ? 1 : share <= 1 - rule.level ? -1 : 0;
    });
  const [better, keeps, near] = [hits.better, hits.keeps, hits.near].map(states);
  const option = better.findIndex(
    (_, own) => better[own] + keeps[own] + near[own] === 3 && rule.is_finished[own],
  );
  let outcome = "cannot_tell";
  if (option >= 0) outcome = "recommended";
  else if (none / (number + 1) >= rule.level) outcome = noneBetter >= none / 2 ? "none_helps" : "none_keeps_enough";
  else if (!better.includes(1)) outcome = "no_evidence";
  return { outcome, option: option >= 0 ? option : null, better, keeps, near };
}

const OUTCOMES = {
  cannot_tell: "Not settled under these margins.",
  no_evidence: "Not shown that fine-tuning helps.",
  none_helps: "No rank helps.",
  none_keeps_enough: "No rank keeps enough under these margins.",
};
const STATES = { 1: "yes", 0: "cannot tell", "-1": "no" };
const MOST_STEPS = 300;

function showSliders(box) {
  const rule = drawnRule(JSON.parse(box.dataset.rule));
  const inputs = [...box.querySelectorAll("input")];
  const body = box.querySelector("tbody");
  for (const input of inputs) {
    const own = Number(input.dataset.own);
    const digits = input.dataset.unit === "points" ? 1 : 3;
    const step = 10 ** -digits;
    input.step = step;
    input.min = step;
    input.max = Math.max(3 * own, (MOST_STEPS / 3) * step).toFixed(digits);
    input.value = own;
    input.addEventListener("input", () => {
      input.dataset.own = input.value;
      input.dataset.moved = "";
      update();
    });
  }
  function update() {
    /* the steps of a slider are coarser than the study's own margins, which count until it moves */
    const margins = inputs.map((input) => Number(input.dataset.own));
    for (const [place, input] of inputs.entries()) {
      const digits = input.dataset.unit === "points" ? 1 : 3;
      const moved = "moved" in input.dataset;
      const shown = moved ? margins[place].toFixed(digits) : shortest(margins[place], digits);
      input.nextElementSibling.textContent = `${shown} ${input.dataset.unit}`;
    }
    const judged = judge(rule, ...margins);
    box.querySelector(".answer").textContent =
      judged.option === null
        ? OUTCOMES[judged.outcome]
        : `Recommended: ${rule.labels[judged.option]}.`;
    body.replaceChildren(
      ...rule.labels.map((label, place) => {
        const row = document.createElement("tr");
        if (place === judged.option) row.className = "marked";
        const head = document.createElement("th");
        head.scope = "row";
        head.textContent = label;
        row.append(head);
        const kept = rule.losses === null ? "—" : STATES[judged.keeps[place]];
        const gained = rule.has_base === false ? "—" : STATES[judged.better[place]];
        for (const text of [gained, kept, STATES[judged.near[place]]]) {
          const cell = document.createElement("td");
          cell.textContent = text;
          row.append(cell);
        }
        return row;
      }),
    );
  }
  update();
  box.hidden = false;
}

document.querySelectorAll(".sliders").forEach(showSliders);

/* Charts: a specification of Vega-Lite's is drawn when it comes into sight, or for print. */
const LEAST_LETTERS = 11;
const MOST_ENLARGED = 1.25;

function draw(chart) {
  drawnLater.unobserve(chart);
  if (chart.dataset.drawn) return;
  chart.dataset.drawn = "begun";
  drawn(chart).catch((error) => {
    chart.firstElementChild.textContent = `This chart cannot be drawn: ${error.message}`;
  });
}

async function drawn(chart) {
  const place = element("div");
  place.ariaHidden = "true"; /* the image that it is in has words of its own */
  chart.firstElementChild.append(place);
  const { view } = await vegaEmbed(place, JSON.parse(chart.nextElementSibling.textContent), {
    actions: false,
    mode: "vega-lite",
    ast: true /* the page's policy allows no code from text */,
    config: JSON.parse(document.getElementById("look").textContent),
    defaultStyle: false,
    tooltip: { disableDefaultStyle: true },
  });
  const svg = place.querySelector("svg");
  const width = svg.viewBox.baseVal.width;
  const letters = [...svg.querySelectorAll("text")].map((text) => parseFloat(getComputedStyle(text).fontSize));
  svg.style.minWidth = `${(width * LEAST_LETTERS) / Math.min(...letters)}px`;
  svg.style.maxWidth = `${width * MOST_ENLARGED}px`;
  view.addEventListener("click", (_, item) => {
    /* an entry of a key, or a name beside a mark */
    const name = item?.mark.role?.startsWith("legend") ? item.datum.value : item?.datum?.names;
    if (name === undefined) return;
    const hidden = view.signal("hidden");
    const others = hidden.filter((each) => each !== name);
    view.signal("hidden", others.length < hidden.length ? others : [...hidden, name]).runAsync();
  });
  chart.dataset.drawn = "yes";
}

const drawnLater = new IntersectionObserver(
  (seen) => seen.filter((each) => each.isIntersecting).forEach((each) => draw(each.target)),
  { rootMargin: "600px" },
);
const charts = document.querySelectorAll(".chart");
charts.forEach((chart) => drawnLater.observe(chart));
window.addEventListener("beforeprint", () => charts.forEach(draw));

/* Item by item. Texts are set as text, never as HTML. */
const ROW_HEIGHT = 34;
const MOST_MATRIX_HEIGHT = 420;
const SHOWN_ABOVE_AND_BELOW = 8;

async function unpacked(base64) {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

/* From which rank on every larger one was right, where the base was wrong; null where none was. */
function learntFrom(data, item) {
  if (data.answers[0].outcome[item] !== "0") return null;
  const ranks = { right: [], wrong: [0] };
  data.models.forEach(({ kind, rank }, model) => {
    if (kind !== "rank") return;
    ranks[data.answers[model].outcome[item] === "1" ? "right" : "wrong"].push(rank);
  });
  /* of a rank with several runs every one must be right */
  const above = ranks.right.filter((rank) => rank > Math.max(...ranks.wrong));
  return above.length ? Math.min(...above) : null;
}

/* A number with one digit more than a slider has, where it needs it. */
function shortest(value, digits) {
  const fine = value.toFixed(digits + 1);
  return fine.endsWith("0") ? value.toFixed(digits) : fine;
}

function filtersOf(data) {
  const runs = data.models.map((_, model) => model).filter((model) => model > 0);
  const lora = runs.filter((model) => data.models[model].kind === "rank");
  const full = runs.filter((model) => data.models[model].kind === "full");
  const at = (model, item) => data.answers[model].outcome[item];
  const wrong = (model, item) => at(model, item) === "0" || at(model, item) === "c";
  const asked = (item) => runs.filter((model) => at(model, item) !== ".");
  const forgotten = (item) => at(0, item) === "1" && asked(item).some((model) => wrong(model, item));
  const filters = {
    "all items": () => true,
    "forgotten by any": forgotten,
    "forgotten by all": (item) =>
      forgotten(item) && asked(item).every((model) => wrong(model, item)),
    "learnt by any": (item) =>
      wrong(0, item) && asked(item).some((model) => at(model, item) === "1"),
    "learnt by all": (item) =>
      wrong(0, item) && asked(item).length > 0 &&
      asked(item).every((model) => at(model, item) === "1"),
  };
  if (full.length && lora.length) {
    filters["forgotten only by full"] = (item) =>
      at(0, item) === "1" &&
      full.some((model) => wrong(model, item)) &&
      lora.every((model) => at(model, item) === "1");
  }
  const ranks = [...new Set(lora.map((model) => data.models[model].rank))];
  for (const rank of ranks) {
    filters[`learnt from rank ${rank} on`] = (item) => learntFrom(data, item) === rank;
  }
  if (data.answers.some((answers) => answers.outcome.includes("c"))) {
    filters["comes back as trained"] = (item) =>
      at(0, item) === "1" && runs.some((model) => at(model, item) === "c");
  }
  for (const model of runs) {
    filters[`changed by ${data.models[model].label}`] = (item) =>
      at(model, item) !== "." && (at(model, item) === "1") !== (at(0, item) === "1");
  }
  return filters;
}

function outcomeInWords(letter) {
  return { 1: "right", 0: "wrong", c: "wrong, right as trained", ".": "not asked" }[letter];
}

async function showItems(section) {
  const data = await unpacked(section.querySelector("pre").textContent);
  const filters = filtersOf(data);
  const form = section.querySelector("form");
  const list = section.querySelector(".list");
  const rows = section.querySelector(".rows");
  const detail = section.querySelector(".detail");
  const canvas = section.querySelector("canvas");
  const status = section.querySelector(".found");
  const count = data.task.length;
  const searched = data.texts.map((text) => text.toLowerCase());
  let found = [];
  let active = 0;

  const option = (value, text) => {
    const made = element("option", "", text);
    made.value = value;
    return made;
  };
  form.task.append(
    option("", "all tasks"),
    ...data.tasks.map((task, place) => option(String(place), `${task.name} (${task.relation})`)),
  );
  form.which.append(...Object.keys(filters).map((name) => option(name, name)));
  const head = section.querySelector(".head");
  head.append(element("span", "name", "Item"));
  for (const model of data.models) head.append(element("span", "cell", model.label));
  section.style.setProperty("--models", data.models.length);
  canvas.before(...data.models.map((model) => element("span", "", model.label)));

  /* first those that most models have right, so that flips stand together */
  const key = Array.from({ length: count }, (_, item) =>
    data.answers.map((answers) => (answers.outcome[item] === "1" ? "1" : "0")).join(""),
  );
  const sorts = {
    order: (one, other) => one - other,
    flip: (one, other) => (key[one] < key[other] ? 1 : key[one] > key[other] ? -1 : one - other),
    margin: (one, other) =>
      (data.answers[0].margin[one] ?? Infinity) - (data.answers[0].margin[other] ?? Infinity),
  };

  function matches(item, words) {
    const texts = [data.prompt[item], data.right[item], ...data.options[item]];
    return words.every((word) => texts.some((text) => searched[text].includes(word)));
  }

  function update() {
    const words = form.text.value.toLowerCase().split(/\s+/).filter(Boolean);
    const passes = filters[form.which.value];
    found = [];
    for (let item = 0; item < count; item += 1) {
      const inTask = form.task.value === "" || data.task[item] === Number(form.task.value);
      if (inTask && passes(item) && matches(item, words)) found.push(item);
    }
    found.sort(sorts[form.sort.value]);
    active = 0;
    status.textContent =
      `${found.length.toLocaleString("en")} of ${count.toLocaleString("en")} items`;
    rows.style.height = `${found.length * ROW_HEIGHT}px`;
    list.scrollTop = 0;
    drawRows();
    drawMatrix();
  }

  function drawRows() {
    const first = Math.max(Math.floor(list.scrollTop / ROW_HEIGHT) - SHOWN_ABOVE_AND_BELOW, 0);
    const shown = Math.ceil(list.clientHeight / ROW_HEIGHT) + 2 * SHOWN_ABOVE_AND_BELOW;
    rows.replaceChildren(
      ...found.slice(first, first + shown).map((item, offset) => row(item, first + offset)),
    );
  }

  function row(item, place) {
    const made = element("div", place === active ? "row active" : "row");
    made.style.top = `${place * ROW_HEIGHT}px`;
    made.setAttribute("role", "option");
    made.id = `item-${place}`;
    made.setAttribute("aria-selected", String(place === active));
    made.setAttribute("aria-posinset", place + 1);
    made.setAttribute("aria-setsize", found.length);
    const prompt = data.texts[data.prompt[item]].trim().split("\n").slice(-3).join(" ");
    const name = element("span", "name", prompt || `${data.tasks[data.task[item]].name} ${data.doc[item]}`);
    made.append(name);
    data.answers.forEach((answers, model) => {
      const letter = answers.outcome[item];
      const cell = element("span", `cell ${letter === "." ? "none" : letter === "1" ? "right" : "wrong"}`);
      const margin = answers.margin[item];
      cell.textContent = letter === "." ? "" : `${letter === "1" ? "✓" : letter === "c" ? "↩" : "✗"}`;
      if (margin !== null) cell.textContent += ` ${(margin / 100).toFixed(1).replace("-", "−")}`;
      cell.title = `${data.models[model].label}: ${outcomeInWords(letter)}`;
      made.append(cell);
    });
    made.addEventListener("click", () => open(place));
    return made;
  }

  function open(place) {
    if (!found.length) return;
    active = Math.max(0, Math.min(place, found.length - 1));
    const item = found[active];
    const top = active * ROW_HEIGHT;
    if (top < list.scrollTop) list.scrollTop = top;
    const room = list.clientHeight - 2 * ROW_HEIGHT;
    if (top > list.scrollTop + room) list.scrollTop = top - room;
    drawRows();
    list.setAttribute("aria-activedescendant", `item-${active}`);
    const task = data.tasks[data.task[item]];
    const table = element("table");
    const body = element("tbody");
    data.answers.forEach((answers, model) => {
      const line = element("tr");
      const label = element("th", "", data.models[model].label);
      label.scope = "row";
      const said =
        answers.option[item] !== null
          ? data.texts[data.options[item][answers.option[item]]] ?? `option ${answers.option[item] + 1}`
          : answers.text[item] !== null ? data.texts[answers.text[item]] : "—";
      const margin = answers.margin[item];
      line.append(
        label,
        element("td", "text", outcomeInWords(answers.outcome[item])),
        element("td", "text said", said),
        element("td", "", margin === null ? "—" : (margin / 100).toFixed(2).replace("-", "−")),
      );
      body.append(line);
    });
    const top_row = element("tr");
    for (const title of ["Model", "Outcome", "Answer", "Margin (nats)"]) {
      const heading = element("th", title === "Margin (nats)" ? "" : "text", title);
      heading.scope = "col";
      top_row.append(heading);
    }
    const thead = element("thead");
    thead.append(top_row);
    const caption = element("caption", "", "What every model answered.");
    table.append(caption, thead, body);
    const right = data.texts[data.right[item]];
    detail.replaceChildren(
      element("h3", "", `${task.name}, item ${data.doc[item]} (${task.relation})`),
      element("blockquote", "", data.texts[data.prompt[item]]),
      ...(right ? [element("p", "", `Right: ${right}`)] : []),
      table,
    );
  }

  function drawMatrix() {
    const scale = window.devicePixelRatio || 1;
    const width = canvas.parentElement.clientWidth;
    const height = Math.min(MOST_MATRIX_HEIGHT, Math.max(found.length, 1) * 4);
    canvas.width = width * scale;
    canvas.height = height * scale;
    canvas.style.height = `${height}px`;
    const paint = canvas.getContext("2d");
    const style = getComputedStyle(section);
    const colours = {
      1: style.getPropertyValue("--good"),
      0: style.getPropertyValue("--faint"),
      c: style.getPropertyValue("--caution"),
    };
    paint.clearRect(0, 0, canvas.width, canvas.height);
    const across = canvas.width / data.models.length;
    const down = canvas.height / Math.max(found.length, 1);
    /* whole pixels, where an item has any: else neighbours mix into bands */
    const edge = (place) => (down < 1 ? place * down : Math.round(place * down));
    data.answers.forEach((answers, model) => {
      found.forEach((item, place) => {
        const letter = answers.outcome[item];
        if (letter === ".") return;
        paint.fillStyle = colours[letter];
        const height = Math.max(edge(place + 1) - edge(place), 0.5);
        paint.fillRect(model * across, edge(place), across - 2 * scale, height);
      });
    });
  }

  canvas.addEventListener("click", (event) => {
    const box = canvas.getBoundingClientRect();
    open(Math.floor(((event.clientY - box.top) / box.height) * found.length));
  });
  list.addEventListener("scroll", drawRows);
  list.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10 }[event.key];
    if (step) open(active + step);
    else if (event.key === "Enter") open(active);
    else if (event.key === "Home") open(0);
    else if (event.key === "End") open(found.length - 1);
    else return;
    event.preventDefault();
  });
  form.addEventListener("input", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  window.addEventListener("resize", () => { drawRows(); drawMatrix(); });
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawMatrix);

  /* #items?task=NAME&model=LABEL: a mark of a chart shows its items, those that its model changed */
  function follow() {
    if (!location.hash.startsWith("#items?")) return;
    const asked = new URLSearchParams(location.hash.slice("#items?".length));
    const place = data.tasks.findIndex((task) => task.name === asked.get("task"));
    form.task.value = place < 0 ? "" : String(place);
    const which = `changed by ${asked.get("model")}`;
    form.which.value = which in filters ? which : "all items";
    update();
    section.scrollIntoView();
  }
  window.addEventListener("hashchange", follow);

  form.hidden = false;
  list.hidden = false;
  section.querySelector(".matrix").hidden = false;
  update();
  follow();
  section.dataset.ready = "yes";
}

document.querySelectorAll("section.items:has(pre)").forEach((section) => {
  showItems(section).catch((error) => {
    section.querySelector(".found").textContent = `The items cannot be shown: ${error.message}`;
  });
});
