// The run and the inputs of a model: its text, pictures, sounds and vectors.
import { field, fill, get, h, option } from './dom.js';

const MAX_FILE = 12 << 20; // bytes

// Bytes of a file as base64, as requests carry them.
export async function base64(file) {
  const url = await new Promise((done, fail) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => fail(reader.error);
    reader.readAsDataURL(file);
  });
  return url.slice(url.indexOf(',') + 1);
}

export async function runPicker(chosen, onchange) {
  const { models } = await get('/api/models');
  const select = h('select', { onchange: () => onchange(models.find((model) => model.name === select.value)) },
    chosen && models.some((model) => model.name === chosen) ? null : option('', 'choose a run\u2026', ''),
    models.map((model) => option(model.name, model.name, chosen)));
  return { element: field('Run', select), model: models.find((model) => model.name === chosen) || null, models };
}

// Buttons that add pictures, sounds and vectors; `values()` returns what a request sends.
export function mediaInputs(model) {
  const held = { images: [], sounds: [], vectors: [] };
  let tooLarge = [];
  const preview = {
    images: (item) => h('img', { src: item.url, alt: item.name, class: 'thumb' }),
    sounds: (item) => h('audio', { src: item.url, controls: true }),
    vectors: (item) => h('code', {}, item.name),
  };
  const list = h('div', { class: 'chips' });
  const draw = () => fill(list, tooLarge.map((file) => h('span', { class: 'note' }, `${file.name} has more than 12 MiB and is left out. `)), Object.entries(held).flatMap(([kind, items]) => items.map((item, i) => h('span', { class: 'chip' },
    preview[kind](item),
    h('button', { class: 'quiet', type: 'button', 'aria-label': `leave out ${item.name}`,
      onclick: () => { held[kind].splice(i, 1); draw(); } }, '\u00d7')))));
  const add = (kind, accept, label) => h('label', { class: 'button' }, label, h('input', { type: 'file', accept, multiple: true, hidden: true,
    onchange: async (event) => {
      const files = [...event.target.files];
      tooLarge = files.filter((file) => file.size > MAX_FILE);
      for (const file of files.filter((each) => each.size <= MAX_FILE)) {
        held[kind].push({ name: file.name, url: URL.createObjectURL(file), content: await base64(file) });
      }
      event.target.value = '';
      draw();
    } }));
  const buttons = [];
  if (model && model.inputs.includes('image')) buttons.push(add('images', 'image/*', 'Add a picture'));
  if (model && model.inputs.includes('audio')) buttons.push(add('sounds', 'audio/*', 'Add a sound'));
  if (model && model.inputs.includes('vectors')) buttons.push(add('vectors', '.npy', 'Add vectors (.npy)'));
  return {
    element: h('div', { class: 'controls' }, buttons, list),
    has: buttons.length > 0,
    urls: () => ({ image: held.images.map((item) => item.url), audio: held.sounds.map((item) => item.url) }),
    values: () => Object.fromEntries(Object.entries(held).map(([kind, items]) => [kind, items.map((item) => item.content)])),
  };
}

export function sourcePicker(model) {
  const names = Object.keys(model ? model.sources : {});
  const select = h('select', {}, option('', 'any', ''), names.map((name) => option(name, name)));
  return { element: names.length > 1 ? field('Template of', select) : null, value: () => select.value };
}

// A piece of text with its white space made visible; a code of a picture or a sound with a sign of its kind.
export function visible(piece) {
  const code = /^(image|audio)\d*:(\d+)$/.exec(piece);
  if (code) return `${code[1] === 'image' ? '\u25a6' : '\u266a'}${code[2]}`;
  return piece.replace(/\n/g, '\u23ce').replace(/\t/g, '\u21e5').replace(/ /g, '\u00b7') || '\u2205';
}
