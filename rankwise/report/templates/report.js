"use strict";

/* The rule of rankwise/findings/decision.py; a test holds both to the same answers. */
function judge(rule, delta, epsilon) {
  const state = (shown, excluded) => (shown ? 1 : excluded ? -1 : 0);
  const better = rule.gain.map(([low, high]) => state(low > 0, high <= 0));
  const keeps =
    rule.loss === null
      ? better.map(() => 1)
      : rule.loss.map(([low, high]) => state(high < epsilon, low > epsilon));
  const shortfall = (own, end) => {
    const behind = rule.lead[own].flatMap((lead, other) =>
      other !== own && keeps[other] !== -1 ? [-lead[end]] : [],
    );
    return behind.length ? Math.max(...behind) : 0;
  };
  const near = keeps.map((_, own) => state(shortfall(own, 0) < delta, shortfall(own, 1) > delta));
  const option = better.findIndex((_, own) => better[own] + keeps[own] + near[own] === 3);
  let outcome = "cannot_tell";
  if (option >= 0) outcome = "recommended";
  else if (!better.includes(1)) outcome = "no_evidence";
  else if (keeps.every((kept) => kept === -1)) outcome = "none_keeps_enough";
  return { outcome, option: option >= 0 ? option : null, better, keeps, near };
}

const OUTCOMES = {
  cannot_tell: "Not settled under these margins.",
  no_evidence: "No evidence for fine-tuning.",
  none_keeps_enough: "No rank keeps enough under these margins.",
};
const STATES = { 1: "yes", 0: "cannot tell", "-1": "no" };
const MOST_STEPS = 300;

function showSliders(box) {
  const rule = JSON.parse(box.dataset.rule);
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
      update();
    });
  }
  function update() {
    /* the steps of a slider are coarser than the study's own margins */
    const margins = inputs.map((input) => Number(input.dataset.own));
    for (const input of inputs) {
      const digits = input.dataset.unit === "points" ? 1 : 3;
      input.nextElementSibling.textContent =
        `${Number(input.value).toFixed(digits)} ${input.dataset.unit}`;
    }
    const judged = judge(rule, margins[0], margins.length > 1 ? margins[1] : 0);
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
        const kept = rule.loss === null ? "—" : STATES[judged.keeps[place]];
        for (const text of [STATES[judged.better[place]], kept, STATES[judged.near[place]]]) {
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
