// Which run comes from which: base, fine-tuned, preferred, distilled, from left to right.
import { cut, h, link, s } from './dom.js';
import { saveButtons } from './export.js';

const WIDTH = 210, HEIGHT = 46, GAP = 92, ROW = 62;

export function tree({ nodes, links }) {
  if (!links.length) return null;
  const depth = new Map(nodes.map((node) => [node.id, 0]));
  for (let round = 0; round < nodes.length; round += 1) {
    let changed = false;
    for (const { from, to } of links) {
      if (depth.get(to) < depth.get(from) + 1 && depth.get(from) < nodes.length) {
        depth.set(to, depth.get(from) + 1);
        changed = true;
      }
    }
    if (!changed) break;
  }
  // Rows: each root takes a row, and its first child stays on it.
  const children = new Map(nodes.map((node) => [node.id, []]));
  const placed = new Set();
  for (const { from, to } of links) {
    const earlier = links.filter((pair) => pair.to === to && depth.get(pair.from) > depth.get(from));
    if (!earlier.length && !placed.has(to)) { children.get(from).push(to); placed.add(to); }
  }
  const row = new Map();
  let next = 0;
  const place = (id) => {
    if (row.has(id)) return;
    row.set(id, next);
    const below = children.get(id);
    below.forEach((child, i) => { if (i) next += 1; place(child); });
  };
  nodes.filter((node) => !placed.has(node.id)).forEach((node) => { place(node.id); next += 1; });
  nodes.forEach((node) => { if (!row.has(node.id)) { place(node.id); next += 1; } });
  const x = (id) => depth.get(id) * (WIDTH + GAP), y = (id) => row.get(id) * ROW;
  const columns = Math.max(...depth.values()) + 1;
  const width = columns * (WIDTH + GAP) - GAP + 4, height = next * ROW - (ROW - HEIGHT) + 4;
  const curves = links.map(({ from, to, how }) => {
    const [x1, y1, x2, y2] = [x(from) + WIDTH, y(from) + HEIGHT / 2, x(to), y(to) + HEIGHT / 2];
    const middle = x2 - GAP / 2;
    return [
      s('path', { d: `M${x1} ${y1}C${middle} ${y1} ${middle} ${y2} ${x2} ${y2}`, fill: 'none', stroke: 'var(--muted)', 'stroke-width': 1.3 }),
      s('text', { x: x2 - 6, y: y2 - 6, 'font-size': 10.5, fill: 'var(--muted)', 'text-anchor': 'end',
        'paint-order': 'stroke', stroke: 'var(--paper)', 'stroke-width': 4 }, cut(how, 16)),
    ];
  });
  const boxes = nodes.map((node) => {
    const box = s('g', {},
      s('rect', { x: x(node.id) + 1, y: y(node.id) + 1, width: WIDTH, height: HEIGHT, rx: 8, fill: 'var(--card)',
        stroke: node.run || node.study ? 'var(--first)' : 'var(--rule)', 'stroke-dasharray': node.run || node.study ? null : '4 3' }),
      s('text', { x: x(node.id) + 12, y: y(node.id) + 20, 'font-size': 13, 'font-weight': 600, fill: 'var(--ink)' }, cut(node.name, 26)),
      s('text', { x: x(node.id) + 12, y: y(node.id) + 36, 'font-size': 11.5, fill: 'var(--muted)' }, cut(node.note, 30)));
    if (node.study) return s('a', { href: link('studies', { study: node.study }) }, box);
    return node.run ? s('a', { href: link('run', { run: node.run }) }, box) : box;
  });
  const svg = s('svg', { viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': 'which run comes from which',
    style: { width: `${width}px`, maxWidth: 'none' } }, curves, boxes);
  const table = () => ({ header: ['from', 'to', 'how'], rows: links.map((pair) => [pair.from, pair.to, pair.how]) });
  return h('section', {}, h('div', { class: 'heading' }, h('h2', {}, 'Provenance'), saveButtons('provenance', () => svg, table)),
    h('p', { class: 'note' }, 'What each run begins with, or learns from. Dashed: not below this folder.'),
    h('div', { class: 'scroll' }, svg));
}
