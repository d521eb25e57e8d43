// Where two models differ on a text: the nats of its characters under each.
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

function draw(output, found, labels) {
  const rows = found.spans.map((span) => [span.text, ...span.nats, span.nats[0] - span.nats[1]]);
  const table = () => ({ header: ['words', ...labels, 'difference'], rows });
  fill(output,
    h('p', {}, h('b', {}, `${found.bits_per_byte[0].toFixed(4)} against ${found.bits_per_byte[1].toFixed(4)} bits per byte`),
      ` on ${found.bytes} bytes. Blue: ${labels[0]} is better there; orange: ${labels[1]}. Full color: 2 nats.`),
    rendered(found.html),
    h('div', { class: 'heading' }, h('h3', {}, 'Words that differ most, in nats'), saveButtons('difference', null, table)),
    h('table', {}, h('thead', {}, h('tr', {}, h('th', {}, 'words'), labels.map((label) => h('th', { class: 'number' }, label)),
      h('th', { class: 'number' }, 'difference'))),
    h('tbody', {}, rows.map(([words, ...nats]) => h('tr', {}, h('td', {}, h('code', {}, words)),
      nats.map((value) => h('td', { class: 'number' }, value.toFixed(3))))))));
}
