// Save a figure as SVG, PNG or CSV, in the colors of the page.
import { h, save } from './dom.js';

const SCALE = 3; // pixels of a PNG per pixel of the page

function svgText(svg) {
  const style = getComputedStyle(document.documentElement);
  const copy = svg.cloneNode(true);
  const [, , width, height] = svg.getAttribute('viewBox').split(' ');
  copy.setAttribute('xmlns', 'http://www.w3.org/2000/svg');
  copy.setAttribute('width', width);
  copy.setAttribute('height', height);
  copy.setAttribute('font-family', 'Inter, Helvetica, Arial, sans-serif');
  copy.querySelectorAll('.hover').forEach((part) => part.remove());
  const text = new XMLSerializer().serializeToString(copy);
  return text.replace(/var\((--\w+)\)/g, (_, name) => style.getPropertyValue(name).trim());
}

async function png(svg) {
  const image = new Image();
  const url = URL.createObjectURL(new Blob([svgText(svg)], { type: 'image/svg+xml' }));
  image.src = url;
  await image.decode();
  const canvas = h('canvas', { width: image.width * SCALE, height: image.height * SCALE });
  const context = canvas.getContext('2d');
  context.fillStyle = getComputedStyle(document.body).backgroundColor;
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingEnabled = false;
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  URL.revokeObjectURL(url);
  return new Promise((done) => canvas.toBlob(done, 'image/png'));
}

// A cell that a spreadsheet would run as a formula is a text.
function cell(value) {
  if (value === null || value === undefined) return '';
  if (typeof value === 'number') return String(value);
  const text = /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
  return /[",\n\r]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text;
}

export function csv(header, rows) {
  return [header, ...rows].map((row) => row.map(cell).join(',')).join('\n') + '\n';
}

// Buttons that save a figure; svg() returns its element, table() {header, rows}.
export function saveButtons(name, svg, table) {
  const file = name.replace(/[^\w.-]+/g, '-').slice(0, 80) || 'figure';
  const button = (label, onclick) => h('button', { class: 'quiet', type: 'button', onclick, title: `save as ${label}` }, label);
  const parts = [];
  if (svg) {
    parts.push(button('PNG', async () => save(`${file}.png`, await png(svg()))));
    parts.push(button('SVG', () => save(`${file}.svg`, svgText(svg()), 'image/svg+xml')));
  }
  if (table) {
    parts.push(button('CSV', () => {
      const { header, rows } = table();
      save(`${file}.csv`, csv(header, rows), 'text/csv');
    }));
  }
  return h('span', { class: 'save' }, ...parts);
}
