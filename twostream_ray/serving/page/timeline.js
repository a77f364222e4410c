// Classes and importance over the time of a video, with a cursor that follows it and moves it (an ARIA slider).

import { element, inSeconds, percent, spoken } from "./dom.js";

const STEP_SECONDS = 0.25;

export class Timeline {
  /** @param onSeek is given seconds. */
  constructor(root, readout, onSeek) {
    this.root = root;
    this.readout = readout;
    this.seconds = 0;
    this.duration = 1;
    this.parts = [];
    const seekTo = (event) => {
      const { left, width } = root.getBoundingClientRect();
      onSeek(Math.min(Math.max((event.clientX - left) / width, 0), 1) * this.duration);
    };
    root.addEventListener("pointerdown", (event) => {
      root.setPointerCapture(event.pointerId);
      seekTo(event);
    });
    root.addEventListener("pointermove", (event) => root.hasPointerCapture(event.pointerId) && seekTo(event));
    root.addEventListener("keydown", (event) => {
      const to = {
        ArrowRight: this.seconds + STEP_SECONDS,
        ArrowUp: this.seconds + STEP_SECONDS,
        ArrowLeft: this.seconds - STEP_SECONDS,
        ArrowDown: this.seconds - STEP_SECONDS,
        PageUp: this.seconds + 2,
        PageDown: this.seconds - 2,
        Home: 0,
        End: this.duration,
      }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      onSeek(Math.min(Math.max(to, 0), this.duration));
    });
  }

  /**
   * @param overTime the answer's intervals, of one head.
   * @param names all classes of that head.
   * @param shown classes that have colours, best first: the place in the list is the colour.
   */
  draw({ duration, overTime, names, shown }) {
    this.duration = Math.max(duration, 0.01);
    this.names = names;
    this.parts = cells(overTime, this.duration);
    const segments = element("div", { class: "segments", "aria-hidden": "true" });
    for (const part of joined(this.parts, names)) {
      const style = { width: `${(100 * (part.end - part.start)) / this.duration}%`, "--colour": colourOf(part.name, shown) };
      segments.append(element("span", { style, title: `${spoken(part.name)}, from ${inSeconds(part.start)}` },
        spoken(part.name)));
    }
    this.importance = element("div", { class: "importance waits", "aria-hidden": "true" });
    this.cursor = element("div", { class: "cursor", "aria-hidden": "true" });
    this.importanceName = element("span", { class: "track-name" }, "Which seconds matter");
    this.root.replaceChildren(
      element("span", { class: "track-name" }, "Class over time"),
      segments,
      this.lines(shown),
      this.importanceName,
      this.importance,
      element("div", { class: "ticks", "aria-hidden": "true" },
        [0, 0.25, 0.5, 0.75, 1].map((share) => element("span", {}, inSeconds(share * this.duration)))),
      this.cursor,
    );
    this.root.setAttribute("aria-valuemin", "0");
    this.root.setAttribute("aria-valuemax", this.duration.toFixed(2));
    this.moveTo(0);
  }

  lines(shown) {
    const indices = shown.map((name) => this.names.indexOf(name)).filter((index) => index >= 0);
    const largest = Math.max(...this.parts.flatMap((part) => indices.map((index) => part.probabilities[index])), 0);
    const most = [0.1, 0.25, 0.5].find((scale) => largest <= 0.96 * scale) || 1;
    const chart = element("svg:svg", { class: "chart", viewBox: "0 0 1000 100", preserveAspectRatio: "none",
      "aria-hidden": "true" });
    for (const y of [2, 50]) chart.append(element("svg:line", { x1: 0, x2: 1000, y1: y, y2: y }));
    [...shown].reverse().forEach((name) => {
      const index = this.names.indexOf(name);
      if (index < 0 || !this.parts.length) return;
      const points = this.parts.map((part) => [part.middle, part.probabilities[index]]);
      points.unshift([0, points[0][1]]);
      points.push([this.duration, points[points.length - 1][1]]);
      const path = points.map(([x, y]) => `${(1000 * x) / this.duration} ${98 - (96 * y) / most}`).join("L");
      chart.append(element("svg:path", { d: `M${path}`, style: { "--colour": colourOf(name, shown) } }));
    });
    return element("div", { class: "scaled" }, chart, element("span", { "aria-hidden": "true" }, percent(most)));
  }

  /** @param seconds the reasons' parts, or null while they are awaited; [] where there are none. */
  drawImportance(seconds, label) {
    this.importance.classList.toggle("waits", seconds === null);
    this.importanceName.textContent = label ? `Which seconds matter for ${spoken(label)}` : "Which seconds matter";
    if (seconds === null || !seconds.length) {
      this.importance.replaceChildren();
      return;
    }
    const values = seconds.map((part) => part.importance);
    const up = Math.max(...values, 0);
    const down = Math.max(...values.map((value) => -value), 0);
    const whole = up + down || 1;
    const zero = (94 * up) / whole + 3;
    const bars = seconds.map((part) => {
      const height = (94 * Math.abs(part.importance)) / whole;
      const style = {
        left: `calc(${(100 * part.start_seconds) / this.duration}% + 1px)`,
        width: `calc(${(100 * (part.end_seconds - part.start_seconds)) / this.duration}% - 2px)`,
        top: `${part.importance >= 0 ? zero - height : zero}%`,
        height: `max(${height}%, 1px)`,
      };
      return element("i", { style, class: part.importance < 0 ? "against" : null });
    });
    this.importance.replaceChildren(element("b", { style: { top: `${zero}%` } }), ...bars);
  }

  moveTo(seconds) {
    this.seconds = Math.min(Math.max(seconds, 0), this.duration);
    this.cursor?.style.setProperty("left", `${(100 * this.seconds) / this.duration}%`);
    const part = this.parts.find((one) => this.seconds <= one.end) || this.parts[this.parts.length - 1];
    let words = inSeconds(this.seconds);
    if (part) {
      const best = [...part.probabilities.keys()].sort((a, b) => part.probabilities[b] - part.probabilities[a]);
      words += `: ${best.slice(0, 2).map((index) => `${spoken(this.names[index])} ${percent(part.probabilities[index])}`)
        .join(", ")}`;
    }
    this.root.setAttribute("aria-valuenow", this.seconds.toFixed(2));
    this.root.setAttribute("aria-valuetext", words);
    if (this.readout.textContent !== words) this.readout.textContent = words;
  }
}

export function colourOf(name, shown) {
  const index = shown.indexOf(name);
  return `var(--class${index < 0 ? 4 : Math.min(index, 4)})`;
}

/** Intervals may overlap or leave gaps: each gets the part of the video that is nearer to its middle than to others'. */
function cells(overTime, duration) {
  const parts = overTime
    .map((one) => ({ middle: (one.start_seconds + one.end_seconds) / 2, probabilities: one.probabilities }))
    .sort((a, b) => a.middle - b.middle);
  parts.forEach((part, index) => {
    part.start = index ? parts[index - 1].end : 0;
    part.end = index + 1 < parts.length ? (part.middle + parts[index + 1].middle) / 2 : duration;
  });
  return parts.filter((part) => part.end > part.start);
}

/** Neighbours of the same best class as one. */
function joined(parts, names) {
  const found = [];
  for (const part of parts) {
    const name = names[part.probabilities.indexOf(Math.max(...part.probabilities))];
    const last = found[found.length - 1];
    if (last?.name === name) last.end = part.end;
    else found.push({ name, start: part.start, end: part.end });
  }
  return found;
}
