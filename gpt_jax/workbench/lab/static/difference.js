// Where two models differ: the nats of a text's characters under each, and their activations.
import { failure, fill, h, post, rendered } from './dom.js';
import { saveButtons } from './export.js';

export function difference(runs, labels) {
  const text = h('textarea', { rows: 3, placeholder: 'a text that both models score', 'aria-label': 'text to score' }), output = h('div');
  const button = h('button', { type: 'submit' }, 'Score');
  const form = h('form', { onsubmit: async (event) => {
    event.preventDefault();
    button.disabled = true;
    fill(output, h('p', { class: 'note' }, 'Computing. Each model is loaded in turn.'));
    try {
      draw(output, await post('/api/difference', { run: runs, text: text.value }), labels);
    } catch (error) {
      fill(output, failure(error));
    }
    button.disabled = false;
  } }, text, h('div', { class: 'controls' }, button));
  return h('section', {}, h('h2', {}, `${labels[0]} against ${labels[1]} on a text`), form, output);
}

function draw(output, reply, labels) {
  const rows = reply.spans.map((span) => [span.text, ...span.nats, span.nats[0] - span.nats[1]]);
  const table = () => ({ header: ['words', ...labels, 'difference'], rows });
  fill(output,
    h('p', {}, h('b', {}, `${reply.bits_per_byte[0].toFixed(4)} against ${reply.bits_per_byte[1].toFixed(4)} bits per byte`),
      ` on ${reply.bytes} bytes. Blue: ${labels[0]} is better there; orange: ${labels[1]}. Full color: 2 nats.`),
    rendered(reply.html),
    h('div', { class: 'heading' }, h('h3', {}, 'Words that differ most, in nats'), saveButtons('difference', null, table)),
    h('table', {}, h('thead', {}, h('tr', {}, h('th', {}, 'words'), labels.map((label) => h('th', { class: 'number' }, label)),
      h('th', { class: 'number' }, 'difference'))),
    h('tbody', {}, rows.map(([words, ...nats]) => h('tr', {}, h('td', {}, h('code', {}, words)),
      nats.map((value) => h('td', { class: 'number' }, value.toFixed(3))))))));
}

// Where the activations of two runs part, on validation rows of the first.
export function activations(runs, labels) {
  const output = h('div');
  const button = h('button', { type: 'button', onclick: async () => {
    button.disabled = true;
    fill(output, h('p', { class: 'note' }, 'Computing. Both models are loaded.'));
    try {
      drawActivations(output, await post('/api/activations', { run: runs }), labels);
    } catch (error) {
      fill(output, failure(error));
    }
    button.disabled = false;
  } }, 'Compare activations');
  return h('section', {}, h('h2', {}, `Where the activations of ${labels[1]} part from those of ${labels[0]}`), button, output);
}

function drawActivations(output, reply, labels) {
  const rows = reply.activations, size = (row) => (Number.isFinite(row.relative) ? row.relative : 0);
  const most = Math.max(...rows.map(size), 1e-12);
  const digits = (value) => (Number.isFinite(value) ? Number(value.toPrecision(3)).toString() : value || '\u2013'); // an infinite one is a text
  const table = () => ({ header: ['activation', 'relative', 'largest'], rows: rows.map((row) => [row.path, row.relative, row.largest]) });
  fill(output,
    h('div', { class: 'heading' }, h('p', {}, `On ${reply.rows} validation rows of ${reply.tokens} tokens of ${reply.source}, in the order of the `
      + `computation. Relative: RMS of the difference over that of ${labels[0]}. \u2013: one of the runs lacks it, or it is no number.`), saveButtons('activations', null, table)),
    h('div', { class: 'scroll' }, h('table', { class: 'activations' }, h('thead', {}, h('tr', {}, h('th', {}, 'activation'),
      h('th', { class: 'number' }, 'relative'), h('th'), h('th', { class: 'number' }, 'largest'))),
    h('tbody', {}, rows.map((row) => h('tr', {}, h('td', {}, h('code', {}, row.path)), h('td', { class: 'number' }, digits(row.relative)),
      h('td', {}, h('span', { class: 'bar-p' }, h('i', { style: { width: `${(100 * size(row)) / most}%` } }))),
      h('td', { class: 'number' }, digits(row.largest))))))));
}
