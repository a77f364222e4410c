// Requests to the service, and what went wrong with them in words.

const TITLES = {
  0: "The service cannot be reached",
  400: "The service did not understand this",
  404: "That is not here",
  408: "The upload was too slow",
  413: "This video is too large",
  415: "This is not a video",
  422: "This video cannot be used",
  429: "Too many videos are waiting",
  500: "The service has failed",
  503: "There is no model yet",
  504: "This took too long",
};
const WORTH_ANOTHER_TRY = new Set([0, 408, 429, 500, 502, 503, 504]);

export class ServiceError extends Error {
  constructor(status, message, retryAfter = null) {
    super(message);
    this.status = status;
    this.title = TITLES[status] || `The service answered with status ${status}`;
    this.retryAfter = retryAfter;
  }

  get isWorthAnotherTry() {
    return WORTH_ANOTHER_TRY.has(this.status);
  }
}

/** The answer's JSON; throws a ServiceError. */
export async function getJson(path) {
  let response;
  try {
    response = await fetch(path, { headers: { Accept: "application/json" } });
  } catch {
    throw new ServiceError(0, "It may have stopped, or the connection is lost.");
  }
  if (!response.ok) throw errorOf(response.status, await response.text(), response.headers.get("Retry-After"));
  return response.json();
}

/**
 * Send a video. XMLHttpRequest, for fetch does not say how much of a body has been sent.
 * @param onSent is given the share that has been sent, in [0, 1].
 */
export function postVideo(path, file, { signal, onSent = () => {} } = {}) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", path);
    request.setRequestHeader("Content-Type", mediaType(file));
    request.setRequestHeader("Accept", "application/json");
    request.upload.onprogress = (event) => event.lengthComputable && onSent(event.loaded / event.total);
    request.upload.onload = () => onSent(1);
    request.onerror = () =>
      reject(new ServiceError(0, "It may have stopped, or the connection was lost while the video was sent."));
    request.onabort = () => reject(new DOMException("cancelled", "AbortError"));
    request.onload = () => {
      if (request.status !== 200) {
        reject(errorOf(request.status, request.responseText, request.getResponseHeader("Retry-After")));
        return;
      }
      try {
        resolve(JSON.parse(request.responseText));
      } catch {
        reject(new ServiceError(500, "Its answer is no JSON: is something else between the page and the service?"));
      }
    };
    signal?.addEventListener("abort", () => request.abort());
    request.send(file);
  });
}

/** What browsers do not know, or call something else than a video, is sent as bytes: the service looks for itself. */
export function mediaType(file) {
  return file.type.startsWith("video/") ? file.type : "application/octet-stream";
}

function errorOf(status, text, retryAfter) {
  let message = "It did not say why.";
  try {
    const said = JSON.parse(text);
    if (typeof said.error?.message === "string") message = sentence(said.error.message);
  } catch {
    // Not from the service, but from something before it.
  }
  return new ServiceError(status, message, retryAfter === null ? null : Number(retryAfter) || null);
}

function sentence(text) {
  const whole = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(whole) ? whole : `${whole}.`;
}
