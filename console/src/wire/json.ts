/**
 * JSON that keeps what JavaScript would lose: a stored value stays the text it travels as, so 1.0 is not turned into 1
 * and 2^60 keeps its last digits.
 */

/** A stored value as its JSON text. */
export class Raw {
  constructor(readonly text: string) {}

  /** The value as JavaScript sees it; only for looking at. */
  get value(): unknown {
    return JSON.parse(this.text);
  }
}

export type TokenKind = "punctuation" | "key" | "string" | "number" | "literal";
export interface Token {
  kind: TokenKind;
  text: string;
}

const NUMBER = /-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/y;
const STRING = /"(?:[^"\\]|\\.)*"/y;
const LITERAL = /true|false|null/y;
const SPACE = /\s*/y;

/** Split valid JSON into its tokens, white space left out. */
export function tokens(text: string): Token[] {
  const found: Token[] = [];
  let at = 0;
  const match = (pattern: RegExp): string | undefined => {
    pattern.lastIndex = at;
    const hit = pattern.exec(text);
    if (hit) at = pattern.lastIndex;
    return hit?.[0];
  };
  while (match(SPACE) !== undefined && at < text.length) {
    const one = text[at]!;
    if (one === '"') {
      found.push({ kind: "string", text: match(STRING) ?? text.slice(at) });
      if (found[found.length - 1]!.text.length === 0) break;
    } else if ("{}[],:".includes(one)) {
      at++;
      const last = found[found.length - 1];
      if (one === ":" && last?.kind === "string") last.kind = "key";
      found.push({ kind: "punctuation", text: one });
    } else {
      const number = match(NUMBER);
      if (number) found.push({ kind: "number", text: number });
      else {
        const literal = match(LITERAL);
        if (!literal) break;
        found.push({ kind: "literal", text: literal });
      }
    }
  }
  return found;
}

/** Lay valid JSON out over lines, numbers and texts untouched. Short arrays and objects stay on one line. */
export function pretty(text: string, width = 88): Token[][] {
  const all = tokens(text);
  const ends = new Map<number, number>();
  const open: number[] = [];
  all.forEach((token, place) => {
    if (token.text === "{" || token.text === "[") open.push(place);
    else if (token.kind === "punctuation" && (token.text === "}" || token.text === "]")) ends.set(open.pop()!, place);
  });
  const lengths = [0];
  for (const token of all) lengths.push(lengths[lengths.length - 1]! + token.text.length + 1);
  const lines: Token[][] = [[]];
  let depth = 0;
  const flatUntil = { place: -1 };
  const space = (count: number): Token => ({ kind: "punctuation", text: " ".repeat(count) });
  const newline = () => lines.push(depth ? [space(2 * depth)] : []);
  all.forEach((token, place) => {
    const line = () => lines[lines.length - 1]!;
    const flat = place <= flatUntil.place;
    if (token.kind === "punctuation" && (token.text === "{" || token.text === "[")) {
      line().push(token);
      if (flat) return;
      const end = ends.get(place) ?? all.length;
      if (lengths[end]! - lengths[place]! + 2 * depth <= width && end - place < 40) flatUntil.place = end;
      else {
        depth++;
        newline();
      }
    } else if (token.kind === "punctuation" && (token.text === "}" || token.text === "]")) {
      if (!flat) {
        depth--;
        newline();
      }
      line().push(token);
    } else if (token.text === "," && token.kind === "punctuation") {
      line().push(token);
      if (flat) line().push(space(1));
      else newline();
    } else if (token.text === ":" && token.kind === "punctuation") {
      line().push(token, space(1));
    } else line().push(token);
  });
  return lines;
}

/** Say why a text is not JSON that can be stored, or nothing where it is. */
export function fault(text: string): string | undefined {
  try {
    JSON.parse(text);
    return undefined;
  } catch (error) {
    return (error as Error).message;
  }
}

/** Write JSON; a `Raw` inside goes out as its text. */
export function encode(thing: unknown): string {
  if (thing instanceof Raw) return thing.text;
  if (Array.isArray(thing)) return `[${thing.map(encode).join(",")}]`;
  if (thing !== null && typeof thing === "object") {
    const members = Object.entries(thing).filter(([, value]) => value !== undefined);
    return `{${members.map(([name, value]) => `${JSON.stringify(name)}:${encode(value)}`).join(",")}}`;
  }
  return JSON.stringify(thing) ?? "null";
}

const VALUES = new Set(["value", "message", "data", "previous"]);

/** Read an answer or a pushed item whose stored values are to stay texts: fields that hold values become `Raw`. */
export function decodeExact(text: string): unknown {
  let at = 0;
  const blank = () => {
    SPACE.lastIndex = at;
    SPACE.exec(text);
    at = SPACE.lastIndex;
  };
  const string = (): string => {
    STRING.lastIndex = at;
    const hit = STRING.exec(text);
    if (!hit) throw new SyntaxError("a string was expected");
    at = STRING.lastIndex;
    return JSON.parse(hit[0]) as string;
  };
  /** Go past one value without building it. */
  const skip = () => {
    let depth = 0;
    do {
      blank();
      const one = text[at];
      if (one === undefined) throw new SyntaxError("the text ends too early");
      if (one === '"') {
        STRING.lastIndex = at;
        STRING.exec(text);
        at = STRING.lastIndex || text.length;
      } else if (one === "{" || one === "[") {
        depth++;
        at++;
      } else if (one === "}" || one === "]") {
        depth--;
        at++;
      } else if (one === "," || one === ":") at++;
      else while (at < text.length && !/[\s,\]}]/.test(text[at]!)) at++;
    } while (depth > 0);
  };
  const value = (raw: boolean, error: boolean): unknown => {
    blank();
    const from = at;
    if (raw) {
      skip();
      return new Raw(text.slice(from, at));
    }
    if (text[at] === "{") {
      const built: Record<string, unknown> = {};
      at++;
      for (blank(); text[at] !== "}"; blank()) {
        if (text[at] === ",") at++;
        blank();
        const name = string();
        blank();
        at++;
        built[name] = value(VALUES.has(name) && !error, error || name === "error");
      }
      at++;
      return built;
    }
    if (text[at] === "[") {
      const built: unknown[] = [];
      at++;
      for (blank(); text[at] !== "]"; blank()) {
        if (text[at] === ",") at++;
        built.push(value(false, error));
      }
      at++;
      return built;
    }
    skip();
    return JSON.parse(text.slice(from, at));
  };
  return value(false, false);
}
