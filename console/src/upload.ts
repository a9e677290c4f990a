// Files to the services, by the same route as OpenAI's client; fetch would not tell how far one is.

import { Code, ConnectError } from "@connectrpc/connect";

import { headers } from "./services";

const CODES: Partial<Record<number, Code>> = {
  401: Code.Unauthenticated,
  403: Code.PermissionDenied,
  404: Code.Unimplemented,
  408: Code.DeadlineExceeded,
  429: Code.ResourceExhausted,
  502: Code.Unavailable,
  503: Code.Unavailable,
  504: Code.DeadlineExceeded,
};

function refusal(request: XMLHttpRequest): ConnectError {
  const code = CODES[request.status] ?? (request.status < 500 ? Code.InvalidArgument : Code.Internal);
  try {
    const answer = JSON.parse(request.responseText) as { error: { message: string } };
    return new ConnectError(answer.error.message, code);
  } catch {
    // Not from a service of ours: a proxy between.
    return new ConnectError(`The file was refused (HTTP ${request.status}).`, code);
  }
}

/**
 * Send a file for training.
 *
 * @param tell told how many bytes have gone, and of how many.
 * @returns its id.
 */
export function upload(
  file: File,
  signal: AbortSignal,
  tell: (done: number, total: number) => void,
): Promise<string> {
  const form = new FormData();
  form.append("purpose", "fine-tune");
  form.append("file", file);
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", "/v1/files");
    for (const [name, value] of Object.entries(headers())) request.setRequestHeader(name, value);
    request.upload.onprogress = (event) => tell(event.loaded, event.total);
    request.onload = () => {
      if (request.status >= 300) return reject(refusal(request));
      resolve((JSON.parse(request.responseText) as { id: string }).id);
    };
    // The browser does not say why: the file may have been changed or moved, too.
    request.onerror = () =>
      reject(new ConnectError(`${file.name} could not be sent. Choose it again if it was changed.`, Code.Unavailable));
    request.onabort = () => reject(new ConnectError("stopped", Code.Canceled));
    signal.addEventListener("abort", () => request.abort());
    request.send(form);
  });
}
