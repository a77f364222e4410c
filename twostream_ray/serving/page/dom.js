// Elements and words that the parts of the page share. Texts from outside only ever become text nodes.

export const find = (id) => document.getElementById(id);

/** An element with attributes, or properties where a key begins with a dot; children are nodes or texts. */
export function element(name, given = {}, ...children) {
  const made = name.startsWith("svg:")
    ? document.createElementNS("http://www.w3.org/2000/svg", name.slice(4))
    : document.createElement(name);
  for (const [key, value] of Object.entries(given)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith(".")) made[key.slice(1)] = value;
    else if (key === "style") for (const [rule, set] of Object.entries(value)) made.style.setProperty(rule, set);
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

/** 0.934 -> "93 %"; what is neither all nor nothing never reads so. */
export function percent(share) {
  if (share > 0 && share < 0.005) return "< 1 %";
  if (share < 1 && share > 0.995) return "> 99 %";
  return `${Math.round(100 * share)} %`;
}

export const inSeconds = (seconds) => `${seconds.toFixed(seconds < 100 ? 1 : 0)} s`;

export function inMinutes(seconds) {
  return seconds >= 120 ? `${Math.round(seconds / 60)} minutes` : `${Math.round(seconds)} seconds`;
}

export function inBytes(bytes) {
  if (bytes >= 1e6) return `${(bytes / 1e6).toFixed(bytes >= 1e7 ? 0 : 1)} MB`;
  return `${Math.max(1, Math.round(bytes / 1e3))} kB`;
}

/** Class names as they are spoken: underscores and capitals inside a word become spaces. */
export function spoken(name) {
  return name.replace(/_+/g, " ").replace(/([a-z])([A-Z])/g, "$1 $2").trim() || name;
}

export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Only pages from https or this machine have a clipboard.
    const area = element("textarea", { ".value": text, class: "unseen", "aria-hidden": "true" });
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    if (!done) throw new Error("copying is not allowed here");
  }
}
