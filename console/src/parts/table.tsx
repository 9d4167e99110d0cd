/**
 * A table of any length: only the rows in sight are in the page. Arrow keys move, Enter opens, Space selects,
 * the headers sort.
 */
import type { ComponentChildren } from "preact";
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";

export interface Column<Row> {
  id: string;
  title: string;
  /** Grid track. */
  width: string;
  cell: (row: Row) => ComponentChildren;
  /** What the column sorts by; without it, it doesn't. */
  by?: (row: Row) => number | string | null;
  numeric?: boolean;
  /** Shown only where the table has at least this many pixels. */
  from?: number;
  help?: string;
}

interface Props<Row> {
  label: string;
  rows: Row[];
  columns: Column<Row>[];
  id: (row: Row) => string;
  open?: ((row: Row) => void) | undefined;
  active?: string | undefined;
  sort?: { column: string; descending: boolean };
  selection?: { chosen: Set<string>; change: (chosen: Set<string>) => void } | undefined;
  /** Stay at the last row as new ones come, until the user scrolls back. */
  follow?: boolean;
  empty?: ComponentChildren;
  rowHeight?: number;
  tone?: (row: Row) => string | undefined;
  fill?: boolean;
  jump?: { to: number; stamp: number } | undefined;
}

const OVERSCAN = 8;

export function sorted<Row>(rows: Row[], column: Column<Row> | undefined, descending: boolean): Row[] {
  const by = column?.by;
  if (!by) return rows;
  const sign = descending ? -1 : 1;
  return [...rows].sort((a, b) => {
    const one = by(a);
    const other = by(b);
    if (one === other) return 0;
    if (one === null) return 1;
    if (other === null) return -1;
    return one < other ? -sign : sign;
  });
}

let serial = 0;

export function Table<Row>(props: Props<Row>) {
  const { rows: given, columns, id, open, selection } = props;
  const [prefix] = useState(() => `t${++serial}`);
  const [sort, setSort] = useState(props.sort ?? { column: "", descending: false });
  const [scroll, setScroll] = useState(0);
  const [size, setSize] = useState({ width: 0, height: 480 });
  const [cursor, setCursor] = useState<string | undefined>();
  const box = useRef<HTMLDivElement>(null);
  const height = props.rowHeight ?? (matchMedia("(pointer: coarse)").matches ? 44 : 36);
  const rows = sorted(given, columns.find((column) => column.id === sort.column), sort.descending);
  const atEnd = useRef(true);
  const top = useRef(0);
  const following = useRef(false);
  following.current = !!props.follow;
  const toEnd = () => {
    if (following.current && atEnd.current) box.current!.scrollTop = box.current!.scrollHeight;
  };

  useLayoutEffect(() => {
    const element = box.current!;
    const measure = () => {
      setSize({ width: element.clientWidth, height: element.clientHeight });
      toEnd();
    };
    measure();
    const observer = new ResizeObserver(measure);
    observer.observe(element);
    return () => observer.disconnect();
  }, []);
  useLayoutEffect(() => {
    if (props.follow) atEnd.current = true;
  }, [props.follow]);
  useLayoutEffect(toEnd, [rows.length, props.follow, props.rows]);
  useEffect(() => {
    if (props.jump) box.current!.scrollTop = props.jump.to * height;
  }, [props.jump?.stamp]);

  const shown = columns.filter((column) => !column.from || size.width >= column.from);
  const template = `${selection ? "2.25rem " : ""}${shown.map((column) => column.width).join(" ")}`;
  const first = Math.max(0, Math.floor(scroll / height) - OVERSCAN);
  const last = Math.min(rows.length, Math.ceil((scroll + size.height) / height) + OVERSCAN);
  const place = cursor === undefined ? -1 : rows.findIndex((row) => id(row) === cursor);

  const reveal = (to: number) => {
    const row = rows[Math.max(0, Math.min(rows.length - 1, to))];
    if (row === undefined) return;
    setCursor(id(row));
    const element = box.current!;
    const top = Math.max(0, Math.min(rows.length - 1, to)) * height;
    const room = element.clientHeight - height;
    if (top < element.scrollTop) element.scrollTop = top;
    else if (top + height > element.scrollTop + room) element.scrollTop = top + height - room;
  };
  const toggle = (row: Row) => {
    if (!selection) return;
    const chosen = new Set(selection.chosen);
    if (!chosen.delete(id(row))) chosen.add(id(row));
    selection.change(chosen);
  };
  const onKeyDown = (event: KeyboardEvent) => {
    if (event.target !== event.currentTarget || event.ctrlKey || event.metaKey || event.altKey) return;
    const page = Math.max(1, Math.floor(size.height / height) - 2);
    const moves: Record<string, number> = { ArrowDown: place + 1, j: place + 1, ArrowUp: place - 1, k: place - 1, PageDown: place + page, PageUp: place - page, Home: 0, End: rows.length - 1 };
    const row = rows[place];
    if (event.key in moves) reveal(moves[event.key]!);
    else if (event.key === "Enter" && row && open) open(row);
    else if (event.key === " " && row && selection) toggle(row);
    else return;
    event.preventDefault();
  };
  const all = selection && rows.length > 0 && rows.every((row) => selection.chosen.has(id(row)));

  return (
    <div class={`table${props.fill === false ? "" : " fill"}`}>
      <div
        class="rows"
        role="grid"
        aria-label={props.label}
        aria-rowcount={rows.length + 1}
        aria-colcount={shown.length + (selection ? 1 : 0)}
        aria-multiselectable={selection ? true : undefined}
        aria-activedescendant={place >= first && place < last ? `${prefix}-${place}` : undefined}
        tabIndex={0}
        ref={box}
        onKeyDown={onKeyDown}
        onFocus={(event) => event.target === event.currentTarget && place < 0 && rows.length && setCursor(id(rows[Math.min(first + (first ? OVERSCAN : 0), rows.length - 1)]!))}
        onScroll={(event) => {
          const element = event.currentTarget;
          setScroll(element.scrollTop);
          // Only scrolling back leaves the end. A list that got smaller or longer before this event came has not left it.
          if (element.scrollTop + element.clientHeight >= element.scrollHeight - height) atEnd.current = true;
          else if (element.scrollTop < top.current) atEnd.current = false;
          top.current = element.scrollTop;
        }}
      >
        <div class="row head" role="row" aria-rowindex={1} style={{ gridTemplateColumns: template }}>
          {selection && (
            <div role="columnheader" class="cell">
              <input type="checkbox" tabIndex={-1} aria-label="Select all" checked={!!all} onChange={() => selection.change(all ? new Set() : new Set(rows.map(id)))} />
            </div>
          )}
          {shown.map((column) => (
            <div role="columnheader" key={column.id} class={`cell${column.numeric ? " number" : ""}`} title={column.help} aria-sort={sort.column === column.id ? (sort.descending ? "descending" : "ascending") : undefined}>
              {column.by ? (
                <button type="button" onClick={() => setSort({ column: column.id, descending: sort.column === column.id ? !sort.descending : !!column.numeric })}>
                  {column.title}
                  <span class="arrow" aria-hidden="true">{sort.column === column.id ? (sort.descending ? "↓" : "↑") : ""}</span>
                </button>
              ) : (
                column.title
              )}
            </div>
          ))}
        </div>
        <div class="space" role="rowgroup" style={{ height: `${rows.length * height}px` }}>
          {rows.slice(first, last).map((row, offset) => {
            const at = first + offset;
            const name = id(row);
            const tone = props.tone?.(row);
            return (
              <div
                key={name}
                id={`${prefix}-${at}`}
                role="row"
                aria-rowindex={at + 2}
                aria-selected={selection ? selection.chosen.has(name) : open ? props.active === name : undefined}
                class={`row${open ? " opens" : ""}${name === cursor ? " cursor" : ""}${name === props.active ? " active" : ""}${tone ? ` ${tone}` : ""}`}
                style={{ transform: `translateY(${at * height}px)`, height: `${height}px`, gridTemplateColumns: template }}
                onClick={() => {
                  setCursor(name);
                  open?.(row);
                }}
              >
                {selection && (
                  <div role="gridcell" class="cell">
                    <input type="checkbox" tabIndex={-1} aria-label="Select" checked={selection.chosen.has(name)} onClick={(event) => event.stopPropagation()} onChange={() => toggle(row)} />
                  </div>
                )}
                {shown.map((column) => (
                  <div role="gridcell" key={column.id} class={`cell${column.numeric ? " number" : ""}`}>
                    {column.cell(row)}
                  </div>
                ))}
              </div>
            );
          })}
        </div>
        {rows.length === 0 && props.empty && <div class="nothing" role="row"><div role="gridcell">{props.empty}</div></div>}
      </div>
    </div>
  );
}
