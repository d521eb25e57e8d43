// Elements, requests and numbers. Texts become text nodes: nothing that a run's files hold is read as HTML.

const SVG = 'http://www.w3.org/2000/svg';

export function h(tag, props = {}, ...children) {
  return build(document.createElement(tag), props, children);
}

export function s(tag, props = {}, ...children) {
  return build(document.createElementNS(SVG, tag), props, children);
}

function build(element, props, children) {
  for (const [key, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith('on')) element.addEventListener(key.slice(2), value);
    else if (key === 'style' && typeof value === 'object') Object.assign(element.style, value);
    else if (key === 'value' || key === 'checked' || key === 'disabled' || key === 'selected') element[key] = value;
    else element.setAttribute(key, value === true ? '' : value);
  }
  element.append(...children.flat(9).filter((x) => x !== null && x !== undefined && x !== false));
  return element;
}

export function fill(element, ...children) {
  element.replaceChildren(...children.flat(9).filter((x) => x !== null && x !== undefined && x !== false));
  return element;
}

// Sections that the reports' own code has rendered and escaped; the page's policy runs no script of theirs.
export function rendered(html) {
  const parsed = new DOMParser().parseFromString(html, 'text/html');
  return h('div', { class: 'report' }, ...parsed.body.childNodes);
}

export class Failure extends Error {
  constructor(body) {
    super(body.error || 'the lab does not answer');
    this.fix = body.fix || '';
  }
}

export async function get(path, params = {}) {
  const query = new URLSearchParams();
  for (const [key, value] of Object.entries(params)) {
    for (const item of Array.isArray(value) ? value : [value]) {
      if (item !== undefined && item !== null && item !== '') query.append(key, item);
    }
  }
  return answer(await fetch(`${path}?${query}`).catch(() => null));
}

export async function post(path, body, signal) {
  return answer(await send(path, body, signal));
}

function send(path, body, signal) {
  const options = { method: 'POST', headers: { 'content-type': 'application/json' }, signal };
  return fetch(path, { ...options, body: JSON.stringify(body) }).catch((error) => {
    if (error.name === 'AbortError') throw error;
    return null;
  });
}

// Calls `take` with each object of an answer in JSON lines, as it arrives.
export async function stream(path, body, take, signal) {
  const response = await send(path, body, signal);
  if (!response || !response.ok) return answer(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  for (;;) {
    const { done, value } = await reader.read();
    const lines = (rest + (value || '')).split('\n');
    rest = lines.pop();
    for (const line of lines) {
      const piece = JSON.parse(line);
      if (piece.error) throw new Failure(piece);
      take(piece);
    }
    if (done) return null;
  }
}

async function answer(response) {
  if (!response) throw new Failure({ error: 'the lab does not answer', fix: 'start launch.py lab again' });
  const body = await response.json().catch(() => ({ error: `status ${response.status}` }));
  if (!response.ok) throw new Failure(body);
  return body;
}

export function failure(error) {
  return h('p', { class: 'alarm', role: 'alert' }, error.message, error.fix ? h('small', {}, error.fix) : null);
}

// ------------------------------------------------------------------------------------- numbers

export function number(value) {
  if (value === null || value === undefined || value === '') return '';
  if (typeof value !== 'number') return String(value);
  if (Number.isInteger(value) && Math.abs(value) < 1e5) return String(value);
  const size = Math.abs(value);
  for (const [scale, unit] of [[1e15, 'P'], [1e12, 'T'], [1e9, 'B'], [1e6, 'M'], [1e3, 'k']]) {
    if (size >= 0.9995 * scale) return `${trim((value / scale).toPrecision(3))}${unit}`;
  }
  if (size >= 0.001 || size === 0) return trim(value.toPrecision(4));
  return value.toExponential(1).replace('.0e', 'e').replace('e-0', 'e-');
}

function trim(text) {
  return text.includes('.') && !text.includes('e') ? text.replace(/\.?0+$/, '') : text;
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return '';
  const total = Math.round(seconds);
  if (total < 60) return `${total} s`;
  if (total < 3600) return `${Math.floor(total / 60)}:${String(total % 60).padStart(2, '0')} min`;
  const hours = Math.floor(total / 3600);
  if (hours < 48) return `${hours}:${String(Math.floor((total % 3600) / 60)).padStart(2, '0')} h`;
  return `${Math.round(hours / 24)} days`;
}

export const cut = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}\u2026` : text);

export function baseName(run) {
  return run.split('/').slice(-2).join('/');
}

// --------------------------------------------------------------------------------------- pages

export function link(page, params = {}) {
  const query = new URLSearchParams();
  for (const [key, value] of Object.entries(params)) {
    for (const item of Array.isArray(value) ? value : [value]) if (item !== '' && item !== null) query.append(key, item);
  }
  const text = query.toString();
  return `#/${page}${text ? `?${text}` : ''}`;
}

export function option(value, label, chosen) {
  return h('option', { value, selected: value === chosen }, label);
}

export function field(label, ...inputs) {
  return h('label', { class: 'field' }, h('span', {}, label), ...inputs);
}

export function save(name, content, type) {
  const url = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
  h('a', { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}
