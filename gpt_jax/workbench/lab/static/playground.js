// Try a model: text, pictures and sounds in and out, and conversations.
import { failure, field, fill, h, option, stream } from './dom.js';
import { mediaInputs, runPicker, sourcePicker } from './inputs.js';
import { remember } from './main.js';

export const TITLE = 'Playground';
const SETTINGS = [['temperature', 'temperature', 0, 5, 0.05], ['top_k', 'top k', 0, 100000, 1], ['top_p', 'top p', 0, 1, 0.01],
  ['guidance', 'guidance', 0, 20, 0.1], ['max_new_tokens', 'new tokens', 1, 4096, 1], ['num_samples', 'samples', 1, 16, 1],
  ['seed', 'seed', 0, 2147483647, 1]];

export async function show(page, params) {
  const holder = h('div'), output = h('div', { class: 'outputs' });
  let model = null, talks = false, abort = null, messages = [];
  const talk = (isChat) => { talks = isChat; messages = []; build(); };
  const use = (chosen) => { model = chosen; talk(Boolean(model && model.chat && model.inputs.every((kind) => kind === 'text'))); remember('playground', { run: model ? model.name : '' }); };
  const picker = await runPicker(params.get('run'), use);
  fill(page, h('h1', {}, 'Playground'), h('div', { class: 'controls' }, picker.element), holder, output);

  function build() {
    fill(output);
    if (!model) { fill(holder, h('p', { class: 'note' }, 'Choose a run with a checkpoint.')); return; }
    const media = mediaInputs(model), source = sourcePicker(model);
    const text = h('textarea', { rows: talks ? 2 : 4, 'aria-label': 'prompt',
      placeholder: talks ? 'a message; Enter sends it' : 'a prompt; Ctrl+Enter samples' });
    const to = h('select', {}, [...new Set([...model.outputs, 'any'])].map((kind) => option(kind, kind, model.outputs[0])));
    const as = h('select', { onchange: () => talk(as.value === 'conversation') },
      ['conversation', 'completion'].map((kind) => option(kind, kind, talks ? 'conversation' : 'completion')));
    const stop = h('input', { type: 'text', size: 10, placeholder: 'none', 'aria-label': 'stop at' });
    const settings = SETTINGS.map(([key, label, min, max, step]) => [key, h('input', { type: 'number', min, max, step,
      placeholder: String(model.sampling[key] ?? ''), 'aria-label': label }), label]);
    const go = h('button', { class: 'main', type: 'submit' }, talks ? 'Send' : 'Sample');
    const cancel = h('button', { type: 'button', disabled: true, onclick: () => abort && abort.abort() }, 'Stop');
    const values = () => Object.fromEntries(settings.filter(([, input]) => input.value !== '').map(([key, input]) => [key, Number(input.value)]));
    const run = async () => {
      go.disabled = true;
      cancel.disabled = false;
      abort = new AbortController();
      try {
        if (talks) await converse(text, values());
        else await sample({ run: model.name, text: text.value, to: to.value, source: source.value(), stop: stop.value ? [stop.value] : [],
          sampling: values(), ...media.values() });
      } catch (error) {
        if (error.name !== 'AbortError') output.append(failure(error));
      }
      go.disabled = false;
      cancel.disabled = true;
    };
    text.addEventListener('keydown', (event) => {
      if (event.key === 'Enter' && !event.shiftKey && (talks || event.ctrlKey || event.metaKey)) {
        event.preventDefault();
        if (!go.disabled) run();
      }
    });
    fill(holder, h('form', { onsubmit: (event) => { event.preventDefault(); run(); } },
      text, media.has && !talks ? media.element : null,
      h('div', { class: 'controls' }, model.chat ? field('as', as) : null, talks ? null : field('make', to), source.element && !talks ? source.element : null,
        settings.map(([, input, label]) => field(label, input)), talks ? null : field('stop at', stop)),
      h('div', { class: 'controls' }, go, cancel, talks ? h('button', { type: 'button', onclick: () => { messages = []; fill(output); } },
        'New conversation') : h('button', { type: 'button', onclick: () => fill(output) }, 'Clear'))));
  }

  async function sample(body) {
    const title = h('h3', {}, `${body.text || 'no text'} \u2192 ${body.to}`), cards = h('div', { class: 'cards' }), note = h('p', { class: 'note' }, 'sampling\u2026');
    output.prepend(h('article', {}, title, cards, note));
    const card = [];
    try {
      await stream('/api/sample', body, (piece) => {
        if (piece.done) {
          fill(note, `${piece.done.seconds.toFixed(1)} s`);
          return;
        }
        const n = piece.sample;
        if (!card[n]) {
          card[n] = { box: h('div', { class: 'card' }), pre: null };
          cards.append(card[n].box);
        }
        if (piece.text !== undefined) {
          if (!card[n].pre) { card[n].pre = h('pre', {}, body.to === 'text' ? h('span', { class: 'given' }, '') : null); card[n].box.append(card[n].pre); }
          card[n].pre.append(piece.text);
        } else {
          card[n].pre = null;
          card[n].box.append(piece.image ? h('img', { src: piece.image, alt: body.text }) : h('audio', { src: piece.audio, controls: true }));
        }
      }, abort.signal);
    } catch (error) {
      fill(note, error.name === 'AbortError' ? 'stopped' : 'failed');
      throw error;
    }
  }

  async function converse(text, sampling) {
    const said = text.value.trim();
    if (!said) return;
    messages.push({ role: 'user', content: said });
    text.value = '';
    const reply = h('p', { class: 'turn assistant' });
    output.append(h('p', { class: 'turn user' }, said), reply);
    try {
      await stream('/api/sample', { run: model.name, messages, sampling }, (piece) => { if (piece.text) reply.append(piece.text); }, abort.signal);
    } catch (error) {
      if (error.name !== 'AbortError') messages.pop();
      if (error.name !== 'AbortError') throw error;
    }
    if (messages[messages.length - 1].role === 'user') messages.push({ role: 'assistant', content: reply.textContent });
  }

  use(picker.model);
  return () => abort && abort.abort();
}
