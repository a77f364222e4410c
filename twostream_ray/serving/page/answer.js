// The answer: its best class in large, bars of the best ones, and the shares of the streams.

import { element, find, percent, spoken } from "./dom.js";
import { colourOf } from "./timeline.js";

export function drawVerdict(head, model) {
  const [best] = head.top;
  find("verdict").replaceChildren(spoken(best.class), " ", element("small", {}, percent(best.probability)));
  find("eyebrow").textContent = `${model.name}, version ${model.version}, says`;
}

/** @param onChoose is given the class to explain. */
export function drawBars(head, explained, onChoose) {
  const shown = head.top.map((one) => one.class);
  const rows = head.top.map((one) => {
    const button = element(
      "button",
      {
        type: "button",
        "aria-pressed": String(one.class === explained),
        style: { "--colour": colourOf(one.class, shown) },
        title: `See what speaks for ${spoken(one.class)}`,
      },
      element("span", {}, spoken(one.class)),
      element("span", { class: "number" }, percent(one.probability)),
      element("span", { class: "track" },
        element("span", { class: "fill", style: { width: `${100 * one.probability}%` } })),
    );
    button.dataset.class = one.class;
    button.addEventListener("click", () => onChoose(one.class));
    return element("li", {}, button);
  });
  find("bars").replaceChildren(...rows);
}

export function markExplained(label) {
  for (const button of find("bars").querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(button.dataset.class === label));
  }
}

/** Buttons of data sets, where the network answers for several. */
export function drawHeads(heads, chosen, onChoose) {
  const root = find("heads");
  root.hidden = heads.length < 2;
  root.replaceChildren(
    ...heads.map((head, number) => {
      const button = element("button", { type: "button", "aria-pressed": String(number === chosen) }, head.name);
      button.addEventListener("click", () => onChoose(number));
      return button;
    }),
  );
}

/** @param streams of the reasons, or null while they are awaited, or undefined where there are none. */
export function drawShares(streams) {
  const root = find("shares");
  root.classList.toggle("waits", streams === null);
  if (!streams) {
    const words = streams === null ? "Being found out …" : "Not known for this video.";
    root.replaceChildren(element("div", { class: "share-bar" }), element("p", { class: "quiet" }, words));
    return;
  }
  const both = ["appearance", "motion"].filter((name) => typeof streams[name] === "number");
  const how =
    streams.method === "exact"
      ? "Exact: this network adds up what its streams say."
      : "By integrated gradients, from a grey still picture to this video.";
  const rough = streams.gap > 0.01 ? " The parts do not add up to the whole within 1 %: take them as rough." : "";
  root.replaceChildren(
    element("div", { class: "share-bar", "aria-hidden": "true" },
      both.map((name) => element("span", { class: name, style: { "flex-grow": streams[name], "flex-basis": 0 } }))),
    element("p", { class: "share-words" },
      both.map((name) =>
        element("span", { class: name }, element("b", {}, percent(streams[name])),
          element("i", { class: "dot", "aria-hidden": "true" }), both.length > 1 ? name : `${name} alone`))),
    element("p", { class: "quiet" }, how + rough),
  );
}
