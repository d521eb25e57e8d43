// Line charts as SVG: linear and logarithmic axes, a readout under the pointer, zoom by dragging.
import { cut, fill, h, number, s } from './dom.js';
import { saveButtons } from './export.js';

const COLORS = ['first', 'second', 'third', 'fourth', 'fifth', 'ink'];
const DASHES = ['', '7 4', '2 3'];
const TOP = 14, BOTTOM = 30, LEFT = 52, ROW = 17;

export const colorOf = (i) => `var(--${COLORS[i % COLORS.length]})`;
export const dashOf = (i) => DASHES[Math.floor(i / COLORS.length) % DASHES.length];

const isPositive = (value) => value !== null && value > 0;

// [low, high] of y; a first plunge may leave a long curve at the top, or it would flatten the rest.
function yLimits(lines, log, [low, high]) {
  const values = lines.flatMap((line) => line.y.filter(
    (y, i) => y !== null && line.x[i] >= low && line.x[i] <= high && (!log || y > 0)));
  if (!values.length) return null;
  values.sort((a, b) => a - b);
  const least = values[0];
  let most = values[values.length - 1];
  if (log) return [least / 1.1, most * 1.1];
  const usual = values[Math.floor(0.95 * (values.length - 1))];
  if (values.length > 40) most = Math.min(most, usual + 0.6 * (usual - least));
  const margin = 0.06 * (most - least) || 0.05 * Math.abs(most) || 1;
  return [least - margin, most + margin];
}

function ticks([low, high], count, log) {
  if (log) {
    const all = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
      for (const digit of [1, 2, 5]) all.push(digit * 10 ** power);
    }
    const inside = all.filter((t) => t >= low && t <= high);
    return inside.length > 2 * count ? inside.filter((t) => /^1/.test(t.toExponential())) : inside;
  }
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough) || rough;
  const inside = [];
  for (let t = Math.ceil(low / step) * step; t <= high + 1e-9 * step; t += step) inside.push(Math.abs(t) < step / 1e6 ? 0 : t);
  return inside;
}

function scale([low, high], [from, to], log) {
  const at = log ? Math.log : (x) => x;
  const a = at(low), b = at(high) - at(low) || 1;
  return (value) => from + ((to - from) * (at(value) - a)) / b;
}

function path(x, y, px, py) {
  let text = '', pen = false;
  for (let i = 0; i < x.length; i += 1) {
    const a = y[i] === null ? NaN : px(x[i]), b = y[i] === null ? NaN : py(y[i]);
    if (Number.isFinite(a) && Number.isFinite(b)) {
      text += `${pen ? 'L' : 'M'}${a.toFixed(1)} ${b.toFixed(1)}`;
      pen = true;
    } else pen = false;
  }
  return text;
}

function nearest(x, value) {
  let low = 0, high = x.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (x[middle] < value) low = middle; else high = middle;
  }
  return Math.abs(x[low] - value) < Math.abs(x[high] - value) ? low : high;
}

// One chart in a <figure>. lines: [{label, x, y, raw: [x, y], index}]. options: title, xLabel, xLog, yLog, height.
export function chart(lines, options) {
  const figure = h('figure', { class: 'chart' });
  const holder = h('div', { class: 'plot' });
  let zoom = null, svg = null;
  const table = () => ({
    header: ['run', options.xLabel, options.title],
    rows: lines.flatMap((line) => line.x.map((x, i) => [line.label, x, line.y[i]])),
  });
  const redraw = () => {
    const width = Math.max(320, Math.round(holder.clientWidth || 640));
    svg = draw(lines, { ...options, width, zoom }, (range) => { zoom = range; redraw(); });
    fill(holder, svg || h('p', { class: 'note' }, 'No finite values on these axes.'));
  };
  const buttons = saveButtons(options.title, () => svg, table);
  fill(figure, h('figcaption', {}, h('b', {}, options.title), buttons), holder);
  new ResizeObserver(() => { if (!svg || Math.abs(holder.clientWidth - Number(svg.dataset.width)) > 4) redraw(); }).observe(holder);
  return figure;
}

function draw(all, options, setZoom) {
  const { width, height = 300, xLog, yLog, zoom } = options;
  const lines = all.filter((line) => line.x.some((x, i) => line.y[i] !== null && (!xLog || x > 0) && (!yLog || isPositive(line.y[i]))));
  const xs = lines.flatMap((line) => line.x.filter((x) => x !== null && (!xLog || x > 0)));
  if (!xs.length) return null;
  let limits = zoom || [xs.reduce((a, b) => Math.min(a, b)), xs.reduce((a, b) => Math.max(a, b))];
  if (limits[0] === limits[1]) limits = xLog ? [limits[0] / 2, limits[1] * 2] : [limits[0] - 1, limits[1] + 1];
  const yRange = yLimits(lines, yLog, limits);
  if (!yRange) return null;
  const letters = Math.min(26, Math.max(...lines.map((line) => line.label.length + 7)));
  const right = lines.length > 1 && width > 520 ? 8 + 6.6 * letters : 48;
  const px = scale(limits, [LEFT, width - right], xLog), py = scale(yRange, [height - BOTTOM, TOP], yLog);
  const id = `clip${Math.random().toString(36).slice(2)}`;
  const text = (x, y, label, props = {}) => s('text', { x, y, 'font-size': 12, fill: 'var(--muted)', ...props }, label);
  const grid = ticks(yRange, Math.max(2, height / 55), yLog).map((t) => [
    s('line', { x1: LEFT, x2: width - right, y1: py(t), y2: py(t), stroke: 'var(--rule)' }),
    text(LEFT - 8, py(t) + 4, number(t), { 'text-anchor': 'end' }),
  ]);
  const columns = ticks(limits, Math.max(2, width / 130), xLog).map((t) => text(px(t), height - BOTTOM + 18, number(t), { 'text-anchor': 'middle' }));
  const curves = lines.map((line) => [
    line.raw && s('path', { d: path(line.raw[0], line.raw[1], px, py), fill: 'none', stroke: colorOf(line.index), 'stroke-width': 1, opacity: 0.22 }),
    s('path', { d: path(line.x, line.y, px, py), fill: 'none', stroke: colorOf(line.index), 'stroke-width': 1.9,
      'stroke-linejoin': 'round', 'stroke-dasharray': dashOf(line.index) }),
    line.x.length <= 40 && line.x.map((x, i) => line.y[i] !== null && (!yLog || line.y[i] > 0) && (!xLog || x > 0)
      && s('circle', { cx: px(x), cy: py(line.y[i]), r: 2.6, fill: colorOf(line.index) })),
  ]);
  const hover = s('g', { class: 'hover' });
  const svg = s('svg', { viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': `${options.title} against ${options.xLabel}` },
    s('clipPath', { id }, s('rect', { x: LEFT, y: TOP - 4, width: width - right - LEFT, height: height - BOTTOM - TOP + 8 })),
    grid, columns, s('g', { 'clip-path': `url(#${id})` }, curves),
    text(width - right, height - 1, options.xLabel, { 'text-anchor': 'end' }), endLabels(lines, py, width - right, height, letters), hover);
  svg.dataset.width = width;
  pointer(svg, hover, { lines, px, py, limits, width, right, height, xLog, setZoom, zoom });
  return svg;
}

function endLabels(lines, py, x, height, letters) {
  if (x > 0 && lines.length < 2) return [];
  const ends = lines.map((line) => {
    const last = line.y.filter((y) => y !== null).pop();
    return { y: Math.min(Math.max(py(last), TOP), height - BOTTOM), line, last };
  }).filter((end) => Number.isFinite(end.y)).sort((a, b) => a.y - b.y);
  if (ends.length * ROW > height - TOP) return [];
  ends.forEach((end, i) => { if (i) end.y = Math.max(end.y, ends[i - 1].y + ROW); });
  for (let i = ends.length - 1, limit = height - BOTTOM + 8; i >= 0; i -= 1, limit -= ROW) ends[i].y = Math.min(ends[i].y, limit);
  return ends.map(({ y, line, last }) => s('text', { x: x + 8, y: y + 4, 'font-size': 12, 'font-weight': 600, fill: colorOf(line.index) },
    `${cut(line.label, letters - 6)} ${number(last)}`));
}

function pointer(svg, hover, view) {
  const { lines, px, py, limits, width, right, height, xLog, setZoom } = view;
  const inner = width - right - LEFT;
  const valueAt = (at) => {
    const share = (at - LEFT) / inner;
    return xLog ? limits[0] * (limits[1] / limits[0]) ** share : limits[0] + share * (limits[1] - limits[0]);
  };
  const place = (event) => ((event.clientX - svg.getBoundingClientRect().left) * width) / svg.getBoundingClientRect().width;
  let start = null;
  svg.addEventListener('pointermove', (event) => {
    const at = Math.min(Math.max(place(event), LEFT), width - right);
    if (start !== null) {
      fill(hover, s('rect', { x: Math.min(start, at), y: TOP, width: Math.abs(at - start), height: height - BOTTOM - TOP, fill: 'var(--first)', opacity: 0.12 }));
      return;
    }
    const rows = lines.map((line) => ({ line, i: nearest(line.x, valueAt(at)) })).filter(({ line, i }) => line.y[i] !== null);
    if (!rows.length) return;
    const x = rows[0].line.x[rows[0].i], cx = px(x);
    const box = 16 + 6.6 * Math.max(...rows.map(({ line }) => Math.min(line.label.length, 28) + 9));
    const left = cx + 14 + box > width ? cx - 14 - box : cx + 14;
    fill(hover,
      s('line', { x1: cx, x2: cx, y1: TOP, y2: height - BOTTOM, stroke: 'var(--muted)', 'stroke-dasharray': '2 3' }),
      rows.map(({ line, i }) => s('circle', { cx: px(line.x[i]), cy: py(line.y[i]), r: 4, fill: colorOf(line.index) })),
      s('rect', { x: left, y: TOP, width: box, height: 22 + ROW * rows.length, rx: 6, fill: 'var(--paper)', stroke: 'var(--rule)' }),
      s('text', { x: left + 10, y: TOP + 16, 'font-size': 12, fill: 'var(--muted)' }, number(x)),
      rows.map(({ line, i }, n) => s('text', { x: left + 10, y: TOP + 16 + ROW * (n + 1), 'font-size': 12, fill: colorOf(line.index) },
        `${cut(line.label, 28)}  ${number(line.y[i])}`)));
  });
  svg.addEventListener('pointerleave', () => { if (start === null) fill(hover); });
  svg.addEventListener('pointerdown', (event) => { start = place(event); svg.setPointerCapture(event.pointerId); });
  svg.addEventListener('pointerup', (event) => {
    const end = Math.min(Math.max(place(event), LEFT), width - right), from = start;
    start = null;
    fill(hover);
    if (from !== null && Math.abs(end - from) > 8) setZoom([valueAt(Math.min(from, end)), valueAt(Math.max(from, end))]);
  });
  svg.addEventListener('dblclick', () => setZoom(null));
}
