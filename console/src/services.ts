// The three services, called at the page's own origin with the key of this session.

import { Code, ConnectError, createClient, type Interceptor } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-web";

import { EncoderService } from "../gen/encoder_pb";
import { RouterService } from "../gen/router_pb";
import { TrainerService } from "../gen/trainer_pb";

const KEY = "matryoshka.key";

/** The key of this session; it is gone when the tab is closed. */
export const key = {
  get: (): string => sessionStorage.getItem(KEY) ?? "",
  set: (value: string): void => sessionStorage.setItem(KEY, value),
  forget: (): void => sessionStorage.removeItem(KEY),
};

/** What a call has to carry besides its body. */
export function headers(): Record<string, string> {
  return key.get() ? { authorization: `Bearer ${key.get()}` } : {};
}

const withKey: Interceptor = (next) => (call) => {
  for (const [name, value] of Object.entries(headers())) call.header.set(name, value);
  return next(call);
};

const transport = createConnectTransport({ baseUrl: location.origin, interceptors: [withKey] });

export const encoder = createClient(EncoderService, transport);
export const router = createClient(RouterService, transport);
export const trainer = createClient(TrainerService, transport);

/** Something that went wrong, in words for people. */
export interface Problem {
  code: Code;
  /** One sentence, as the service says it. */
  message: string;
  /** What to do about it, where that can be told; else "". */
  next: string;
}

const NEXT: Partial<Record<Code, string>> = {
  [Code.Unauthenticated]: "Enter one above, under the key's button.",
  [Code.PermissionDenied]: "Use a key with the scope that is named, or ask an operator for one.",
  [Code.Unavailable]: "See whether the service runs: matryoshka doctor tells what is away.",
  [Code.ResourceExhausted]: "Wait a moment and try again.",
  [Code.DeadlineExceeded]: "Try again; the service may be busy.",
};

function keyWords(): string {
  return key.get() ? "The service does not know the key of this session" : "This service asks for a key";
}

/** Return what to show of an error. */
export function problemOf(reason: unknown): Problem {
  const error = ConnectError.from(reason);
  const isAway = error.code === Code.Unknown && /fetch|network/i.test(error.rawMessage);
  const code = isAway ? Code.Unavailable : error.code;
  const said = isAway ? "The service does not answer" : code === Code.Unauthenticated ? keyWords() : error.rawMessage;
  const message = /[.!?]$/.test(said) ? said : `${said}.`;
  return { code, message, next: NEXT[code] ?? "" };
}
