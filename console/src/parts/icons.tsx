/** Icons of 16 by 16, drawn with lines in the text's colour. */
const PATHS = {
  now: "M2 9h3l2-5 3 9 2-4h2",
  queues: "M2.5 3.5h11M2.5 8h11M2.5 12.5h7",
  streams: "M2 5c2.5-3 4.5 3 7 0s3.500-1.500 5 0M2 11c2.500-3 4.500 3 7 0s3.500-1.500 5 0",
  keys: "M10.500 2.500a3 3 0 1 1-2.600 4.500L3 12v1.500h2.500V12H7v-1.500l1.300-1.200",
  pubsub: "M8 8h.01M5.200 5.200a4 4 0 0 0 0 5.600M10.800 5.200a4 4 0 0 1 0 5.600M3.200 3.200a6.800 6.800 0 0 0 0 9.600M12.800 3.200a6.800 6.800 0 0 1 0 9.600",
  clients: "M6 7.500a2.500 2.500 0 1 0 0-5 2.500 2.500 0 0 0 0 5ZM1.500 13.500c.3-2.500 2-4 4.500-4s4.200 1.500 4.500 4M10.500 2.800a2.500 2.500 0 0 1 0 4.400M12 9.800c1.500.5 2.300 1.800 2.500 3.700",
  workers: "M8 10.500a2.500 2.500 0 1 0 0-5 2.500 2.500 0 0 0 0 5ZM8 1.500v2M8 12.500v2M1.500 8h2M12.500 8h2M3.400 3.400l1.400 1.400M11.200 11.200l1.400 1.400M3.400 12.600l1.400-1.400M11.200 4.800l1.400-1.400",
  try: "M2.500 4l3.500 4-3.500 4M8 12.500h5.500",
  server: "M2.500 2.500h11v4.500h-11zM2.500 9h11v4.500h-11zM5 4.800h.01M5 11.200h.01",
  sun: "M8 11a3 3 0 1 0 0-6 3 3 0 0 0 0 6ZM8 1v1.500M8 13.500V15M1 8h1.500M13.500 8H15M3 3l1.100 1.100M11.900 11.900L13 13M3 13l1.100-1.100M11.900 4.100L13 3",
  moon: "M13 9.500A5.500 5.500 0 0 1 6.500 3a5.500 5.500 0 1 0 6.500 6.500Z",
  auto: "M8 2a6 6 0 1 0 0 12 6 6 0 0 0 0-12ZM8 2v12",
  search: "M7 12a5 5 0 1 0 0-10 5 5 0 0 0 0 10ZM10.500 10.500L14 14",
  plus: "M8 3v10M3 8h10",
  copy: "M5.500 5.500h8v8h-8zM3 10.500h-.5v-8h8V3",
  check: "M3 8.500l3.500 3.500L13 4.500",
  back: "M9.500 3L4.500 8l5 5",
  right: "M6 3.500L10.500 8 6 12.500",
  down: "M3.500 6L8 10.500 12.500 6",
  close: "M3.500 3.500l9 9M12.500 3.500l-9 9",
  pause: "M5.500 3v10M10.500 3v10",
  play: "M5 3l8 5-8 5z",
  trash: "M2.500 4.500h11M6 4.500v-2h4v2M4 4.500l.7 9h6.600l.7-9",
  redo: "M13 3v3.500H9.500M12.800 6.300A5.500 5.500 0 1 0 13.500 9",
  alert: "M8 1.800L14.800 13.700H1.200zM8 6v3.500M8 11.700h.01",
  help: "M8 14A6 6 0 1 0 8 2a6 6 0 0 0 0 12ZM6.300 6.300A1.800 1.800 0 1 1 8 8.500v.8M8 11.400h.01",
  exit: "M6 2.500H2.500v11H6M10 5l3 3-3 3M13 8H6",
  more: "M3.500 8h.01M8 8h.01M12.500 8h.01",
  send: "M14 2L7 9M14 2l-4.500 12L7 9 2 6.500z",
  save: "M8 2v8M4.500 7L8 10.500 11.500 7M2.500 13.500h11",
  edit: "M10.500 2.500l3 3L5.500 13.500l-3.500.500.500-3.500z",
  clock: "M8 14A6 6 0 1 0 8 2a6 6 0 0 0 0 12ZM8 4.500V8l2.500 1.500",
} as const;

export type IconName = keyof typeof PATHS;

export function Icon({ name }: { name: IconName }) {
  return (
    <svg class="icon" viewBox="0 0 16 16" width="16" height="16" fill="none" stroke="currentColor" stroke-width="1.5" stroke-linecap="round" stroke-linejoin="round" aria-hidden="true">
      <path d={PATHS[name]} />
    </svg>
  );
}

export function Mark() {
  return (
    <svg class="mark" viewBox="0 0 32 32" width="26" height="26" aria-hidden="true">
      <rect width="32" height="32" rx="8" fill="#4f46e5" />
      <path d="M7 11h7a4 4 0 0 1 4 4v2a4 4 0 0 0 4 4h3" fill="none" stroke="#fff" stroke-width="2.6" stroke-linecap="round" />
      <circle cx="8" cy="11" r="3" fill="#fff" />
      <circle cx="24" cy="21" r="3" fill="#a5f3d0" />
      <circle cx="24" cy="11" r="2" fill="#c7c9ff" />
      <circle cx="8" cy="21" r="2" fill="#c7c9ff" />
    </svg>
  );
}
