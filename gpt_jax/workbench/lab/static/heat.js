// Matrices as pictures: attention maps and tables of predictions.
import { fill, h, s } from './dom.js';
import { saveButtons } from './export.js';

function rgb(name) {
  const probe = h('i', { style: { color: `var(${name})` } });
  document.body.append(probe);
  const numbers = getComputedStyle(probe).color.match(/[\d.]+/g).map(Number);
  probe.remove();
  return numbers;
}

// A canvas of `rows` x `columns` pixels whose opacity is the value, 0 to 1.
export function pixels(value, rows, columns, color = '--first') {
  const canvas = h('canvas', { width: columns, height: rows });
  const context = canvas.getContext('2d'), image = context.createImageData(columns, rows);
  const [red, green, blue] = rgb(color);
  for (let i = 0; i < rows * columns; i += 1) {
    image.data.set([red, green, blue, Math.round(255 * Math.min(1, value(Math.floor(i / columns), i % columns)))], 4 * i);
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

// A labelled square map: rows look at columns. pieces: texts of both.
export function attentionMap(title, weights, T, pieces) {
  const cell = Math.max(3, Math.min(22, Math.floor(640 / T))), labels = cell >= 11;
  const edge = labels ? 96 : 12, size = cell * T;
  const readout = h('p', { class: 'note' }, 'Rows attend to columns. Point at a cell.');
  const root = (t, u) => Math.sqrt(weights(t, u)); // small weights are seen, too
  const text = (x, y, label, more) => s('text', { x, y, 'font-size': Math.min(12, cell), fill: 'var(--muted)', ...more }, label);
  const svg = s('svg', { viewBox: `0 0 ${edge + size + 12} ${edge + size + 12}`, role: 'img', 'aria-label': title,
    style: { width: `${edge + size + 12}px`, maxWidth: '100%' } },
  s('image', { href: pixels(root, T, T).toDataURL(), x: edge, y: edge, width: size, height: size, style: 'image-rendering:pixelated' }),
  s('rect', { x: edge, y: edge, width: size, height: size, fill: 'none', stroke: 'var(--rule)' }),
  labels ? pieces.map((piece, t) => [
    text(edge - 6, edge + cell * (t + 0.5) + 4, piece.slice(0, 12), { 'text-anchor': 'end' }),
    text(0, 0, piece.slice(0, 12), { transform: `translate(${edge + cell * (t + 0.5) + 4} ${edge - 6}) rotate(-90)` }),
  ]) : []);
  svg.addEventListener('pointermove', (event) => {
    const box = svg.getBoundingClientRect(), unit = box.width / (edge + size + 12);
    const u = Math.floor(((event.clientX - box.left) / unit - edge) / cell), t = Math.floor(((event.clientY - box.top) / unit - edge) / cell);
    if (t >= 0 && u >= 0 && t < T && u < T) fill(readout, `${t} ${pieces[t]} \u2192 ${u} ${pieces[u]}: ${weights(t, u).toFixed(4)}`);
  });
  const table = () => ({ header: ['query', 'key', 'query piece', 'key piece', 'weight'],
    rows: pieces.flatMap((piece, t) => pieces.map((other, u) => [t, u, piece, other, Number(weights(t, u).toFixed(5))])) });
  return h('figure', { class: 'chart' }, h('figcaption', {}, h('b', {}, title), saveButtons(title, () => svg, table)), svg, readout);
}

// A table of words, layers from the last down, shaded by probability; outlined where it is the actual next token.
export function lensTable(title, lens, pieces, show) {
  const width = 74, height = 25, left = 64, top = 44;
  const L = lens.length, T = pieces.length;
  const rows = lens.map((layer, l) => layer.map(([piece, p], t) => {
    const x = left + width * t, y = top + height * (L - 1 - l), right = t + 1 < T && piece === pieces[t + 1].piece;
    return [s('rect', { x: x + 1, y: y + 1, width: width - 2, height: height - 2, rx: 3, fill: 'var(--first)', 'fill-opacity': 0.06 + 0.6 * p,
      stroke: right ? 'var(--second)' : 'none', 'stroke-width': 1.6 }),
    s('text', { x: x + width / 2, y: y + 17, 'font-size': 11.5, fill: 'var(--ink)', 'text-anchor': 'middle' }, show(piece).slice(0, 9),
      s('title', {}, `layer ${l}, after ${show(pieces[t].piece)}: ${show(piece)} ${(100 * p).toFixed(1)} %`))];
  }));
  const heads = pieces.map((token, t) => s('text', { x: left + width * (t + 0.5), y: top - 12, 'font-size': 12, fill: 'var(--muted)',
    'text-anchor': 'middle' }, show(token.piece).slice(0, 9)));
  const names = lens.map((_, l) => s('text', { x: left - 8, y: top + height * (L - 1 - l) + 17, 'font-size': 12, fill: 'var(--muted)',
    'text-anchor': 'end' }, `layer ${l}`));
  const svg = s('svg', { viewBox: `0 0 ${left + width * T + 8} ${top + height * L + 8}`, role: 'img', 'aria-label': title,
    style: { width: `${left + width * T + 8}px`, maxWidth: 'none' } }, heads, names, rows);
  const table = () => ({ header: ['layer', 'token', 'after', 'prediction', 'probability', 'nats of the next token'],
    rows: lens.flatMap((layer, l) => layer.map(([piece, p, nats], t) => [l, t, pieces[t].piece, piece, p, t + 1 < T ? nats : null])) });
  return h('figure', { class: 'chart' }, h('figcaption', {}, h('b', {}, title), saveButtons(title, () => svg, table)),
    h('div', { class: 'scroll' }, svg));
}
