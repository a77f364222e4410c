// The page: a video goes to the service, its answer is drawn at once, its reasons when they are there.

import { drawBars, drawHeads, drawShares, drawVerdict, markExplained } from "./answer.js";
import { copyText, element, find, inBytes, inMinutes, inSeconds, percent, spoken } from "./dom.js";
import { Looks } from "./reasons.js";
import { ServiceError, getJson, mediaType, postVideo } from "./service.js";
import { Timeline } from "./timeline.js";

const TOP = 5;
const MOMENTS = 8;

const video = find("video");
const timeline = new Timeline(find("timeline"), find("readout"), (seconds) => seek(seconds));
const looks = new Looks((seconds) => seek(seconds));

let work = new AbortController();
let explaining = new AbortController();
let file = null;
let playable = true;
let answer = null;
let headNumber = 0;
let limits = {};

// ---- what is said and shown

function say(words) {
  find("status").textContent = words;
}

function showError(error, onRetry) {
  find("error-title").textContent = error.title || "Something went wrong on this page";
  find("error-words").textContent = error.message;
  find("error").hidden = false;
  const button = find("retry");
  button.hidden = !(onRetry && error.isWorthAnotherTry);
  button.onclick = onRetry;
}

function showWork(words, share) {
  find("work").hidden = false;
  find("work-words").textContent = words;
  const bar = find("work-bar");
  if (share === undefined) bar.removeAttribute("value");
  else bar.value = share;
}

// ---- a video

function take(chosen, { isSample = false } = {}) {
  if (!chosen) return;
  if (!isSample) markSample(null);
  work.abort();
  explaining.abort();
  file = chosen;
  answer = null;
  find("error").hidden = true;
  find("answer").hidden = true;
  if (limits.body_bytes && chosen.size > limits.body_bytes) {
    const words = `It has ${inBytes(chosen.size)}; the service takes at most ${inBytes(limits.body_bytes)}.`;
    showError(new ServiceError(413, words));
    return;
  }
  showVideo(URL.createObjectURL(chosen));
  ask();
}

function showVideo(url) {
  if (video.src.startsWith("blob:")) URL.revokeObjectURL(video.src);
  playable = true;
  find("unplayable").hidden = true;
  video.src = url;
}

async function ask() {
  work = new AbortController();
  const { signal } = work;
  const sent = file;
  const begun = performance.now();
  const clock = setInterval(() => {
    find("work-time").textContent = inSeconds((performance.now() - begun) / 1000);
  }, 100);
  find("error").hidden = true;
  showWork("Sending …", 0);
  say(`Sending ${sent.name || "the video"}`);
  try {
    const found = await postVideo(`predict?top_k=${TOP}`, sent, {
      signal,
      onSent: (share) => {
        if (share < 1) showWork(`Sending … ${percent(share)}`, share);
        else showWork("Sent. Reading frames and motion …");
      },
    });
    if (!signal.aborted) showAnswer(found);
  } catch (error) {
    if (error.name === "AbortError" || signal.aborted) return;
    showError(error, ask);
    if (error.retryAfter) countDown(error.retryAfter, signal);
  } finally {
    clearInterval(clock);
    if (!signal.aborted) find("work").hidden = true;
  }
}

/** The button says when the service wants to be asked again. */
function countDown(seconds, signal) {
  const button = find("retry");
  button.disabled = true;
  const step = (left) => {
    if (signal.aborted || left <= 0) {
      button.disabled = false;
      button.textContent = "Try again";
      return;
    }
    button.textContent = `Try again in ${left} s`;
    setTimeout(step, 1000, left - 1);
  };
  step(Math.ceil(seconds));
}

function showAnswer(found) {
  answer = found;
  headNumber = 0;
  document.body.classList.add("has-answer");
  find("answer").hidden = false;
  video.style.setProperty("--shape", `${found.video.width} / ${found.video.height}`);
  drawHead();
  drawPrograms();
  const [best] = head().top;
  say(`The answer is ${spoken(best.class)}, ${percent(best.probability)}`);
  find("verdict").focus({ preventScroll: true });
  find("answer").scrollIntoView({ block: "nearest" });
  if (playable) video.play().catch(() => {});
}

const head = () => answer.heads[headNumber];

function drawHead() {
  const chosen = head();
  const names = chosen.scores.map((one) => one.class);
  drawVerdict(chosen, answer.model);
  drawHeads(answer.heads, headNumber, (number) => {
    headNumber = number;
    drawHead();
  });
  timeline.draw({
    duration: answer.video.seconds,
    overTime: answer.over_time.map((part) => ({ ...part, probabilities: part.heads[headNumber].probabilities })),
    names,
    shown: chosen.top.map((one) => one.class),
  });
  timeline.moveTo(video.currentTime || 0);
  drawBars(chosen, chosen.top[0].class, explain);
  explain(chosen.top[0].class);
}

// ---- reasons

async function explain(label) {
  explaining.abort();
  explaining = new AbortController();
  const { signal } = explaining;
  markExplained(label);
  looks.wait(label);
  drawShares(null);
  timeline.drawImportance(null, label);
  const query = new URLSearchParams({ label, moments: MOMENTS, top_k: TOP });
  if (!playable) query.set("clip", "true");
  try {
    const found = await postVideo(`explain?${query}`, file, { signal });
    if (signal.aborted) return;
    looks.draw(found.reasons);
    drawShares(found.reasons.streams);
    timeline.drawImportance(found.reasons.seconds, label);
    if (found.reasons.clip && !playable) playCopy(found.reasons.clip);
    looks.moveTo(timeline.seconds);
    say(`What speaks for ${spoken(label)} is shown`);
    answer = { ...answer, reasons: found.reasons };
    drawPrograms();
  } catch (error) {
    if (error.name === "AbortError" || signal.aborted) return;
    drawShares(undefined);
    timeline.drawImportance([], label);
    looks.fail(error, () => explain(label));
  }
}

/** What the browser cannot play, the service has decoded and coded anew. */
async function playCopy(uri) {
  const bytes = Uint8Array.from(atob(uri.slice(uri.indexOf(",") + 1)), (letter) => letter.charCodeAt(0));
  showVideo(URL.createObjectURL(new Blob([bytes], { type: "video/mp4" })));
  await video.play().catch(() => {});
}

// ---- position

function seek(seconds) {
  if (playable && Number.isFinite(video.duration)) {
    video.pause();
    video.currentTime = Math.min(seconds, video.duration);
  }
  moveTo(seconds);
}

function moveTo(seconds) {
  if (!answer) return;
  timeline.moveTo(seconds);
  looks.moveTo(seconds);
}

function follow() {
  moveTo(video.currentTime);
  if (!video.paused && !video.ended) requestAnimationFrame(follow);
}

video.addEventListener("play", follow);
video.addEventListener("seeked", () => moveTo(video.currentTime));
video.addEventListener("error", () => {
  if (!video.src) return;
  playable = false;
  const words = find("unplayable");
  words.textContent = "This browser cannot play the file. The service reads it all the same, and sends a copy.";
  words.hidden = false;
});

// ---- for programs

function drawPrograms() {
  const name = (file.name || "video").replaceAll("'", "'\\''");
  const address = new URL(`predict?top_k=${TOP}`, location.href);
  find("curl").textContent =
    `curl --data-binary '@${name}' -H 'Content-Type: ${mediaType(file)}' '${address.href}'`;
  const short = (_, value) =>
    typeof value === "string" && value.startsWith("data:")
      ? `${value.slice(0, value.indexOf(","))}, … (${inBytes((3 * value.length) / 4)})`
      : value;
  find("json").textContent = JSON.stringify(answer, short, 1);
  const spent = answer.timings;
  const parts = [
    ["waiting", spent.wait_seconds],
    ["reading frames and motion", spent.decode_seconds],
    ["the network", spent.network_seconds],
  ].filter(([, seconds]) => seconds >= 0.005);
  find("timings").textContent =
    `${answer.video.frames} frames in ${inSeconds(answer.video.seconds)}. Answered in ${spent.total_seconds.toFixed(2)} s: ` +
    `${parts.map(([what, seconds]) => `${what} ${seconds.toFixed(2)} s`).join(", ")}.`;
}

for (const button of document.querySelectorAll(".copy")) {
  const words = button.textContent;
  button.addEventListener("click", async () => {
    const text = button.dataset.copies === "json" ? JSON.stringify(answer, null, 1) : find("curl").textContent;
    try {
      await copyText(text);
      button.textContent = "Copied";
      say("Copied");
    } catch (error) {
      button.textContent = `Not copied: ${error.message}`;
    }
    setTimeout(() => (button.textContent = words), 2500);
  });
}

// ---- what the page is given

find("file").addEventListener("change", (event) => {
  take(event.target.files[0]);
  // So that the same file may be chosen again.
  event.target.value = "";
});
// Browsers open a file dialog by the space bar alone.
find("file").addEventListener("keydown", (event) => {
  if (event.key !== "Enter") return;
  event.preventDefault();
  event.target.click();
});
find("cancel").addEventListener("click", () => {
  work.abort();
  find("work").hidden = true;
  say("Cancelled");
  find("file").focus();
});

let dragged = 0;
const showVeil = (isShown) => {
  find("veil").hidden = !isShown;
  find("drop").classList.toggle("over", isShown);
};
addEventListener("dragenter", (event) => {
  event.preventDefault();
  dragged += 1;
  showVeil(true);
});
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("dragleave", () => {
  dragged = Math.max(0, dragged - 1);
  if (!dragged) showVeil(false);
});
addEventListener("drop", (event) => {
  event.preventDefault();
  dragged = 0;
  showVeil(false);
  const [dropped] = event.dataTransfer.files;
  if (dropped) take(dropped);
  else showError(new ServiceError(415, "What was dropped is no file: save the video first, then drop that."));
});

function markSample(chosen) {
  for (const button of find("sample-list").querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(button === chosen));
  }
}

async function takeSample(name, button) {
  markSample(button);
  try {
    const response = await fetch(`samples/${encodeURIComponent(name)}`);
    if (!response.ok) throw new Error();
    const content = await response.blob();
    take(new File([content], name, { type: content.type || "video/mp4" }), { isSample: true });
  } catch {
    showError(new ServiceError(0, "The sample did not arrive."), () => takeSample(name, button));
  }
}

async function showSamples() {
  const { samples } = await getJson("samples");
  find("sample-list").replaceChildren(
    ...samples.map(({ name, title }) => {
      const words = title || spoken(name.replace(/\.\w+$/, ""));
      const still = element("video", { src: `samples/${encodeURIComponent(name)}`, preload: "metadata",
        ".muted": true, playsinline: true, tabindex: -1, "aria-hidden": "true" });
      const button = element("button", { type: "button", "aria-pressed": "false" }, still, element("span", {}, words));
      button.addEventListener("click", () => takeSample(name, button));
      return element("li", {}, button);
    }),
  );
  find("samples").hidden = !samples.length;
}

async function showModel() {
  try {
    const { model, heads, limits: given } = await getJson("model");
    limits = given;
    const classes = heads.reduce((sum, one) => sum + one.classes.length, 0);
    find("model").replaceChildren(element("b", {}, model.name), `, version ${model.version} · ${classes} classes`);
  } catch (error) {
    find("model").textContent = error.title;
  }
  const most = [
    limits.body_bytes ? inBytes(limits.body_bytes) : null,
    limits.seconds ? inMinutes(limits.seconds) : null,
  ].filter(Boolean);
  find("limits").textContent = most.length ? `At most ${most.join(" and ")}` : "";
}

showModel();
showSamples().catch(() => {
  find("samples").hidden = true;
});
