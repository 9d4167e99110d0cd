/** Numbers, sizes and times as people read them. */

const whole = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });

export function count(value: number | null | undefined): string {
  return value === null || value === undefined ? "–" : whole.format(value);
}

/** At most four characters and a unit: 950, 12.3k, 4.1M. */
export function short(value: number): string {
  if (value < 10_000) return whole.format(value);
  for (const [size, unit] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]] as const)
    if (value >= size) return `${(value / size).toFixed(value < 100 * size ? 1 : 0)}${unit}`;
  return whole.format(value);
}

export function perSecond(value: number): string {
  if (value === 0) return "0";
  if (value < 10) return value.toFixed(1);
  return short(Math.round(value));
}

export function bytes(value: number | null | undefined): string {
  if (value === null || value === undefined) return "–";
  let unit = "B";
  for (const next of ["KiB", "MiB", "GiB", "TiB"]) {
    if (value < 1024) break;
    value /= 1024;
    unit = next;
  }
  return `${unit === "B" || value >= 100 ? value.toFixed(0) : value.toFixed(1)} ${unit}`;
}

/** A span: 840 ms, 12 s, 3 min 20 s, 2 h 5 min, 4 d 3 h. */
export function span(seconds: number | null | undefined): string {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 1) return `${Math.max(0, Math.round(seconds * 1000))} ms`;
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  const pair = (big: number, unit: string, small: number, smaller: string) => {
    const first = Math.floor(seconds / big);
    const rest = Math.floor((seconds - first * big) / small);
    return rest ? `${first} ${unit} ${rest} ${smaller}` : `${first} ${unit}`;
  };
  if (seconds < 3600) return pair(60, "min", 1, "s");
  if (seconds < 86_400) return pair(3600, "h", 60, "min");
  return pair(86_400, "d", 3600, "h");
}

/** The coarse form of `span`, for columns. */
export function age(seconds: number | null | undefined): string {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 60) return `${Math.max(0, Math.floor(seconds))} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 172_800) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86_400)} d`;
}

export function milliseconds(value: number | null | undefined): string {
  if (value === null || value === undefined) return "–";
  return value < 10 ? `${value.toFixed(value < 1 ? 2 : 1)} ms` : value < 1000 ? `${Math.round(value)} ms` : span(value / 1000);
}

const pad = (value: number) => String(value).padStart(2, "0");

/** 14:03:27, with the day where it isn't today. */
export function clock(unix: number): string {
  const time = new Date(unix * 1000);
  const hours = `${pad(time.getHours())}:${pad(time.getMinutes())}:${pad(time.getSeconds())}`;
  return time.toDateString() === new Date().toDateString() ? hours : `${time.getFullYear()}-${pad(time.getMonth() + 1)}-${pad(time.getDate())} ${hours}`;
}

export const plural = (number: number, one: string, many = `${one}s`): string => `${count(number)} ${number === 1 ? one : many}`;
