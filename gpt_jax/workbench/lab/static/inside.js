// Look inside a model: tokens and their losses, alternatives, attention maps and the logit lens.
import { failure, fill, h, post, s } from './dom.js';
import { saveButtons } from './export.js';
import { codesFigure } from './codes.js';
import { attentionMap, lensTable, pixels } from './heat.js';
import { mediaInputs, runPicker, sourcePicker, visible } from './inputs.js';
import { remember } from './main.js';

export const TITLE = 'Look inside';
const MOST = 6; // nats at which a token has the full color

const name = (token) => (token.kind === 'special' ? `\u27e8${token.piece}\u27e9` : visible(token.piece));

export async function show(page, params) {
  const text = h('textarea', { rows: 3, placeholder: 'a text', 'aria-label': 'text' }), output = h('div'), inputs = h('div');
  const answer = h('input', { type: 'text', placeholder: 'answer after it (if any)', size: 40, 'aria-label': 'answer' });
  text.value = params.get('text') || '';
  answer.value = params.get('answer') || '';
  let media = mediaInputs(null), source = sourcePicker(null), model = null;
  const use = (chosen) => {
    model = chosen;
    media = mediaInputs(model);
    source = sourcePicker(model);
    fill(inputs, media.has ? media.element : null, h('div', { class: 'controls' }, source.element));
    remember('inside', { run: model ? model.name : '', text: text.value, answer: answer.value });
  };
  const picker = await runPicker(params.get('run'), use);
  const button = h('button', { class: 'main', type: 'submit' }, 'Look inside');
  const form = h('form', { onsubmit: (event) => { event.preventDefault(); run(); } }, h('div', { class: 'controls' }, picker.element),
    text, inputs, h('div', { class: 'controls' }, answer, button));
  fill(page, h('h1', {}, 'Look inside'), h('p', { class: 'note' }, 'What a model reads and predicts, token by token.'), form, output);
  use(picker.model);

  async function run() {
    if (!model) return;
    button.disabled = true;
    fill(output, h('p', { class: 'note' }, 'Computing. The first look at a model loads and compiles it.'));
    try {
      const body = { run: model.name, text: text.value, answer: answer.value, source: source.value(), ...media.values() };
      draw(output, await post('/api/inside', body), media.urls());
      remember('inside', { run: model.name, text: text.value, answer: answer.value });
    } catch (error) {
      fill(output, failure(error));
    }
    button.disabled = false;
  }
  if (model && text.value) await run();
  return null;
}

function draw(output, reply, urls) {
  const { tokens, layers, heads } = reply, T = tokens.length, pieces = tokens.map(name);
  const bytes = Uint8Array.from(atob(reply.attention), (c) => c.charCodeAt(0));
  const weights = new Uint16Array(bytes.buffer);
  const at = (l, head) => (t, u) => weights[((l * heads + head) * T + t) * T + u] / 65535;
  const judged = tokens.filter((token) => token.nats !== null && !token.given);
  const nats = judged.map((token) => token.nats);
  const mean = nats.reduce((a, b) => a + b, 0) / Math.max(1, nats.length);
  const details = h('div', { class: 'details' });
  const strip = h('div', { class: 'strip-tokens' }, tokens.map((token, t) => h('button', { type: 'button', class: `tok ${token.kind} ${token.given ? 'given' : ''}`,
    title: `id ${token.id}${token.nats === null ? '' : `, ${token.nats.toFixed(3)} nats`}`,
    style: { background: token.nats === null || token.given ? 'none' : `color-mix(in srgb, var(--second) ${Math.round(70 * Math.min(1, token.nats / MOST))}%, transparent)` },
    onclick: () => choose(t) }, pieces[t])), h('button', { type: 'button', class: 'tok after', onclick: () => choose(T) }, 'next'));
  const map = h('div'), thumbs = h('div', { class: 'thumbs' });

  function choose(t) {
    [...strip.children].forEach((element, i) => element.classList.toggle('here', i === t));
    const token = tokens[t], top = t < T ? token.top : reply.next;
    const bar = (word) => h('tr', { class: t < T && word.id === token.id ? 'hit' : '' }, h('td', {}, h('code', {}, name(word))),
      h('td', {}, h('span', { class: 'bar-p' }, h('i', { style: { width: `${Math.max(1, 100 * word.p)}%` } }))),
      h('td', { class: 'number' }, `${(100 * word.p).toFixed(word.p < 0.001 ? 3 : 1)} %`));
    fill(details, t < T ? h('p', {}, h('b', {}, pieces[t]), ` id ${token.id}`,
      token.nats === null ? ', the first token' : `, ${token.nats.toFixed(3)} nats, probability ${(100 * Math.exp(-token.nats)).toPrecision(3)} %`)
      : h('p', {}, h('b', {}, 'The next token')), top.length ? h('table', {}, h('tbody', {}, top.map(bar))) : null);
  }

  function pick(l, head) {
    [...thumbs.querySelectorAll('button')].forEach((button) => button.classList.toggle('here', button.dataset.key === `${l}.${head}`));
    fill(map, attentionMap(`Attention of layer ${l}, head ${head}`, at(l, head), T, pieces));
  }
  fill(thumbs, h('table', {}, h('thead', {}, h('tr', {}, h('th'), Array.from({ length: heads }, (_, i) => h('th', {}, `head ${i}`)))),
    h('tbody', {}, Array.from({ length: layers }, (_, l) => h('tr', {}, h('th', {}, `layer ${l}`), Array.from({ length: heads }, (__, head) => {
      const button = h('button', { type: 'button', title: `layer ${l}, head ${head}`, onclick: () => pick(l, head) },
        pixels((t, u) => Math.sqrt(at(l, head)(t, u)), T, T));
      button.dataset.key = `${l}.${head}`;
      return h('td', {}, button);
    }))))));
  fill(output,
    h('section', {}, h('h2', {}, 'Tokens'), h('p', { class: 'note' }, `${T} tokens, ${mean.toFixed(3)} nats a token. Orange: surprising. `,
      judged.length < T - 1 ? 'Gray: the condition, which training never predicts. ' : '',
      reply.cut ? `${reply.cut} more tokens are cut off. ` : '', 'Choose a token to see what the model expected in its place.'), strip, details, lossBars(tokens, pieces)),
    reply.media.length ? h('section', {}, h('h2', {}, 'Codes'), h('p', { class: 'note' }, 'What the model reads of a picture or a sound: ',
      'decoded from its codes, with their numbers.'), h('div', { class: 'codes' }, reply.media.map((item, i) => codesFigure(item,
      urls[item.kind][reply.media.slice(0, i).filter((other) => other.kind === item.kind).length])))) : null,
    h('section', {}, h('h2', {}, 'Attention'), h('p', { class: 'note' }, 'Root of the weights, so that small ones are seen. Choose a head.'),
      h('div', { class: 'attention' }, thumbs, map)),
    h('section', {}, h('h2', {}, 'Logit lens'), h('p', { class: 'note' }, 'Each layer\u2019s residual stream through the last norm and the head: '
      + 'the likeliest next token, shaded by its probability; outlined where it is the actual one.'),
    lensTable('Logit lens', reply.lens, tokens, (piece) => visible(piece))));
  choose(nats.length ? tokens.findIndex((token) => !token.given && token.nats === Math.max(...nats)) : T);
  pick(0, 0);
}

function lossBars(tokens, pieces) {
  const width = Math.max(14, Math.min(44, Math.floor(1200 / tokens.length))), height = 110, left = 40;
  const size = (token) => (token.given ? 0 : token.nats || 0), most = Math.max(1, ...tokens.map(size));
  const svg = s('svg', { viewBox: `0 0 ${left + width * tokens.length + 8} ${height + 34}`, role: 'img', 'aria-label': 'nats of each token',
    style: { width: `${left + width * tokens.length + 8}px`, maxWidth: 'none' } },
  [0, most / 2, most].map((value) => [
    s('line', { x1: left, x2: left + width * tokens.length, y1: 8 + height * (1 - value / most), y2: 8 + height * (1 - value / most), stroke: 'var(--rule)' }),
    s('text', { x: left - 6, y: 12 + height * (1 - value / most), 'font-size': 11, fill: 'var(--muted)', 'text-anchor': 'end' }, value.toFixed(1)),
  ]),
  tokens.map((token, t) => {
    const tall = (height * size(token)) / most;
    return [s('rect', { x: left + width * t + 1, y: 8 + height - tall, width: width - 2, height: tall, fill: 'var(--second)', opacity: 0.8 }),
      s('text', { x: left + width * (t + 0.5), y: height + 22, 'font-size': Math.min(11, width * 0.6), fill: 'var(--muted)', 'text-anchor': 'middle' },
        token.kind === 'text' || width > 24 ? pieces[t].slice(0, Math.max(1, Math.floor(width / 6))) : '')];
  }));
  const table = () => ({ header: ['token', 'id', 'piece', 'nats'], rows: tokens.map((token, t) => [t, token.id, token.piece, token.nats]) });
  return h('figure', { class: 'chart' }, h('figcaption', {}, h('b', {}, 'Nats of each token'), saveButtons('nats-by-token', () => svg, table)),
    h('div', { class: 'scroll' }, svg));
}
