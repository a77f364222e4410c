// Where the network looked: pictures of the moment nearest to the video's position.

import { element, find, inSeconds, spoken } from "./dom.js";

const TILES = [
  { title: "Frame", words: "what the network sees", of: (moment) => moment.rgb, lacks: "This network looks at motion alone." },
  { title: "Motion", words: "from this frame to the next", of: (moment) => moment.flow,
    lacks: "This network looks at frames alone." },
  { title: "Appearance", layer: "spatial", stream: "appearance", words: "where frames speak for it" },
  { title: "Movement", layer: "temporal", stream: "motion", words: "where motion speaks for it" },
  { title: "Both, joined", layer: "fused", stream: "joined", words: "behind the fusion" },
];

export class Looks {
  /** @param onSeek is given the seconds of a moment that was chosen. */
  constructor(onSeek) {
    this.onSeek = onSeek;
    this.reasons = null;
    this.current = -1;
  }

  wait(label) {
    this.reasons = null;
    this.current = -1;
    find("why").setAttribute("aria-busy", "true");
    find("why-words").textContent = `Looking for what speaks for ${spoken(label)} …`;
    find("why-error").hidden = true;
    find("key").hidden = true;
    find("moments").replaceChildren();
    find("tiles").replaceChildren(
      ...TILES.map((tile) => figure(tile, element("div", { class: "blank waits", "aria-hidden": "true" }))));
  }

  draw(reasons) {
    this.reasons = reasons;
    this.current = -1;
    find("why").setAttribute("aria-busy", "false");
    find("why-words").textContent =
      `Bright where it speaks for ${spoken(reasons.label)}; the line is at half of the brightest.`;
    find("key").hidden = !reasons.moments.some((moment) => moment.flow);
    find("key-words").textContent =
      "Motion in colours: red moves right, yellow down, blue left, magenta up. White stands still; full colour is " +
      `${reasons.fastest_px.toFixed(1)} px from one frame to the next.`;
    find("moments").replaceChildren(
      ...reasons.moments.map((moment, number) => {
        const button = element("button", { type: "button", "aria-label": `Show ${inSeconds(moment.seconds)}` },
          element("img", { src: moment.rgb || moment.flow, alt: "" }), element("span", {}, inSeconds(moment.seconds)));
        button.addEventListener("click", () => {
          this.show(number);
          this.onSeek(moment.seconds);
        });
        return element("li", {}, button);
      }),
    );
    find("tiles").replaceChildren(...TILES.map((tile) => figure(tile, this.contentOf(tile))));
    this.show(0);
  }

  contentOf(tile) {
    const { missing, moments } = this.reasons;
    const why = tile.layer ? missing[tile.layer] : moments.some(tile.of) ? null : tile.lacks;
    if (why) return element("div", { class: "blank" }, tile.layer ? `Not there: ${why}.` : why);
    return element("img", { alt: "" });
  }

  fail(error, onRetry) {
    find("why").setAttribute("aria-busy", "false");
    find("why-words").textContent = "";
    find("tiles").replaceChildren();
    const root = find("why-error");
    root.querySelector("p").textContent = `${error.title || "No reasons"}. ${error.message}`;
    const button = root.querySelector("button");
    button.hidden = !error.isWorthAnotherTry;
    button.onclick = onRetry;
    root.hidden = false;
  }

  moveTo(seconds) {
    if (!this.reasons?.moments.length) return;
    const away = this.reasons.moments.map((moment) => Math.abs(moment.seconds - seconds));
    this.show(away.indexOf(Math.min(...away)));
  }

  show(number) {
    if (number === this.current || !this.reasons?.moments[number]) return;
    this.current = number;
    const moment = this.reasons.moments[number];
    find("moments").querySelectorAll("button").forEach((button, index) => {
      if (index === number) button.setAttribute("aria-current", "true");
      else button.removeAttribute("aria-current");
    });
    const label = spoken(this.reasons.label);
    find("tiles").querySelectorAll("figure").forEach((root, index) => {
      const tile = TILES[index];
      const picture = root.querySelector("img");
      const source = tile.layer ? moment.overlays[tile.layer] : tile.of(moment);
      if (!picture || !source) return;
      picture.src = source;
      const what = tile.layer ? `${tile.title}: ${tile.words}, ${label},` : `${tile.title}`;
      picture.alt = `${what} at ${inSeconds(moment.seconds)}`;
    });
  }
}

function figure(tile, content) {
  const dot = tile.stream ? element("i", { class: "dot", "aria-hidden": "true" }) : null;
  const given = { class: tile.stream || null, "data-tile": tile.layer || tile.title.toLowerCase() };
  return element("figure", given, content,
    element("figcaption", {}, element("b", {}, dot, tile.title), element("span", {}, tile.words)));
}
