/** A line chart by uPlot, in the colours of the theme. */
import { useEffect, useRef } from "preact/hooks";
import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";
import { theme } from "../state/theme";

interface Props {
  label: string;
  /** [times, …series]; read again whenever `stamp` changes. */
  data: () => number[][];
  stamp: number;
  series: { name: string; color: string }[];
  format: (value: number) => string;
  height?: number;
  stacked?: boolean;
}

const css = (name: string) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function stack(data: number[][]): number[][] {
  const [time = [], ...rest] = data;
  const sums: number[][] = [];
  let below: number[] = time.map(() => 0);
  for (const series of rest) {
    below = series.map((value, place) => value + below[place]!);
    sums.push(below);
  }
  return [time, ...sums];
}

export function Chart({ label, data, stamp, series, format, height = 190, stacked = false }: Props) {
  const box = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);
  const colours = theme.value;
  const read = () => {
    const raw = data();
    return (stacked ? stack(raw) : raw) as unknown as uPlot.AlignedData;
  };
  useEffect(() => {
    const element = box.current!;
    const axis: uPlot.Axis = { stroke: css("--muted"), font: "11px system-ui", grid: { stroke: css("--line"), width: 1 }, ticks: { show: false } };
    const order = series.map((_, place) => place + 1);
    const options: uPlot.Options = {
      padding: [8, 8, 0, 0],
      width: element.clientWidth || 300,
      height,
      legend: { show: false },
      cursor: { y: false, points: { size: 6 }, drag: { x: false, y: false } },
      scales: { y: { range: (_, __, max) => [0, Math.max(1, max * 1.15)] } },
      axes: [
        { ...axis, size: 26, space: 70, values: (_, splits) => splits.map((at) => new Date(at * 1000).toTimeString().slice(0, 8)) },
        { ...axis, size: 56, values: (_, splits) => splits.map(format) },
      ],
      series: [
        {},
        ...series.map((one): uPlot.Series => ({
          label: one.name,
          stroke: css(one.color),
          width: 1.75,
          points: { show: false },
          ...(stacked ? {} : { fill: series.length === 1 ? `${css(one.color)}1c` : undefined! }),
        })),
      ],
      ...(stacked && {
        bands: order.map((place) => ({ series: [place, place - 1] as [number, number], fill: `${css(series[place - 1]!.color)}26` })).filter((band) => band.series[1] > 0),
      }),
    };
    if (stacked) options.series[1]!.fill = `${css(series[0]!.color)}26`;
    const made = (plot.current = new uPlot(options, read(), element));
    const observer = new ResizeObserver(() => element.clientWidth && made.setSize({ width: element.clientWidth, height }));
    observer.observe(element);
    return () => {
      observer.disconnect();
      made.destroy();
    };
  }, [colours, series.map((one) => one.name).join()]);
  useEffect(() => {
    plot.current?.setData(read());
  }, [stamp]);
  const latest = data().slice(1).map((values, place) => `${series[place]?.name ?? ""} ${format(values[values.length - 1] ?? 0)}`).join(", ");
  return <div class="chart" ref={box} role="img" aria-label={`${label}: ${latest}`} style={{ minHeight: `${height}px` }} />;
}

/** A small line without axes, for tiles. */
export function Spark({ values, color }: { values: number[]; color: string }) {
  const width = 120;
  const height = 28;
  const shown = values.slice(-60);
  const most = Math.max(1e-9, ...shown);
  const points = shown.map((value, place) => `${((place + 60 - shown.length) / 59) * width},${(height - 2 - (value / most) * (height - 5)).toFixed(1)}`);
  return (
    <svg class="spark" viewBox={`0 0 ${width} ${height}`} preserveAspectRatio="none" aria-hidden="true">
      {points.length > 11 && <polyline points={points.join(" ")} fill="none" stroke={`var(${color})`} stroke-width="1.5" vector-effect="non-scaling-stroke" />}
    </svg>
  );
}
