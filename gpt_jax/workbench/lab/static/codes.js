// The codes of a picture as a grid, and of a sound over its spectrogram, beside the original.
import { h, s } from './dom.js';
import { saveButtons } from './export.js';

const SIDE = 260; // pixels of a picture

function gridFigure({ address, codes, grid: [rows, columns] }) {
  const cell = SIDE / Math.max(rows, columns), size = Math.min(12, cell * 0.42);
  return s('svg', { viewBox: `0 0 ${cell * columns} ${cell * rows}`, role: 'img', 'aria-label': 'codes of a picture',
    style: { width: `${cell * columns}px` } },
  s('image', { href: address, width: cell * columns, height: cell * rows, style: 'image-rendering:pixelated' }),
  codes.map((books, p) => {
    const x = cell * (p % columns), y = cell * Math.floor(p / columns);
    return [s('rect', { x, y, width: cell, height: cell, fill: 'none', stroke: 'var(--first)', 'stroke-width': 0.4 }),
      size > 4 ? s('text', { x: x + cell / 2, y: y + cell / 2 + size / 3, 'font-size': size, 'text-anchor': 'middle', fill: 'var(--second)',
        'paint-order': 'stroke', stroke: 'var(--paper)', 'stroke-width': 2 }, books.join(' ')) : null];
  }));
}

function soundFigure({ spectrogram, codes }) {
  const cell = Math.max(16, Math.min(46, Math.floor(900 / codes.length))), width = cell * codes.length, height = spectrogram ? 130 : 0;
  const line = 14, books = codes[0].length;
  return s('svg', { viewBox: `0 0 ${width} ${height + line * books + 6}`, role: 'img', 'aria-label': 'codes of a sound over its spectrogram',
    style: { width: `${width}px`, maxWidth: '100%' } },
  spectrogram ? s('image', { href: spectrogram, width, height, preserveAspectRatio: 'none', style: 'image-rendering:pixelated' }) : null,
  codes.map((position, p) => [
    s('line', { x1: cell * p, x2: cell * p, y1: 0, y2: height + line * books, stroke: 'var(--first)', 'stroke-width': 0.5 }),
    position.map((code, q) => s('text', { x: cell * (p + 0.5), y: height + line * (q + 1), 'font-size': Math.min(12, cell * 0.5),
      'text-anchor': 'middle', fill: 'var(--ink)' }, String(code))),
  ]));
}

export function codesFigure(item, original) {
  const isImage = item.kind === 'image';
  const svg = isImage ? gridFigure(item) : soundFigure(item);
  const table = () => ({ header: ['position', ...item.codes[0].map((_, q) => `codebook ${q}`)], rows: item.codes.map((books, p) => [p, ...books]) });
  const title = `Codes of ${isImage ? 'a picture' : 'a sound'}, tokens ${item.start + 1} to ${item.end - 1}`;
  const show = (label, address) => h('div', {}, h('h3', {}, label), isImage ? h('img', { src: address, alt: label, width: SIDE })
    : h('audio', { src: address, controls: true }));
  return h('figure', { class: 'chart' }, h('figcaption', {}, h('b', {}, title), saveButtons(title, () => svg, table)),
    h('div', { class: isImage ? 'beside' : '' }, original ? show('original', original) : null, item.address ? show('decoded from its codes', item.address) : null,
      h('div', {}, isImage ? h('h3', {}, 'codes') : null, svg)));
}
