// The data of a run: counts, packed rows with what carries loss, documents, and search.
import { failure, field, fill, get, h, number, option, rendered } from './dom.js';
import { saveButtons } from './export.js';
import { visible } from './inputs.js';
import { remember } from './main.js';

export const TITLE = 'Data';

export async function show(page, params) {
  const runs = (await get('/api/runs')).rows.map((row) => row.name);
  const view = { run: params.get('run') || '', file: params.get('file') || '', row: Number(params.get('row') || 0) };
  const select = h('select', { onchange: () => { view.run = select.value; view.file = ''; view.row = 0; load(); } },
    option('', 'choose a run\u2026', view.run), runs.map((run) => option(run, run, view.run)));
  const body = h('div');
  fill(page, h('h1', {}, 'Data'), h('p', { class: 'note' }, 'What a run trains on, as its token caches hold it.'),
    h('div', { class: 'controls' }, field('Run', select)), body);

  async function load() {
    remember('data', { run: view.run });
    if (!view.run) return;
    try {
      const reply = await get('/api/data', { run: view.run });
      if (!reply.caches.length) {
        fill(body, h('p', { class: 'note' }, 'This run has no token caches: its data were removed, or it has none of its own.'));
        return;
      }
      if (!reply.caches.some((cache) => cache.file === view.file)) view.file = reply.caches[0].file;
      draw(reply);
    } catch (error) {
      fill(body, failure(error));
    }
  }

  function draw(reply) {
    const rows = h('div'), hits = h('div'), head = h('div', { class: 'controls' });
    const table = () => ({ header: ['source', 'split', 'documents', 'tokens', 'bytes', 'images', 'sounds', 'skipped', 'template'],
      rows: reply.caches.map((c) => [c.source, c.split, c.documents, c.tokens, c.bytes, c.media.images || 0, c.media.sounds || 0,
        c.media.skipped || 0, c.template]) });
    const { header, rows: lines } = table();
    const used = header.map((_, i) => i < 5 || lines.some((line) => line[i]));
    const counts = h('table', {}, h('thead', {}, h('tr', {}, header.map((name, i) => used[i] && h('th', { class: i > 1 && i < 8 ? 'number' : '' }, name)))),
      h('tbody', {}, lines.map((line, n) => h('tr', { class: reply.caches[n].file === view.file ? 'here' : '' }, line.map((value, i) => used[i]
        && h('td', { class: i > 1 && i < 8 ? 'number' : '' }, i === 0
          ? h('button', { class: 'quiet', type: 'button', onclick: () => { view.file = reply.caches[n].file; view.row = 0; draw(reply); } }, value)
          : i === 8 ? h('code', {}, value || '') : typeof value === 'number' ? value.toLocaleString('en') : value))))));
    const notes = reply.caches.flatMap((cache) => Object.entries(cache.notes).map(([note, n]) => `${cache.source} ${cache.split}: ${n} ${note}`));
    const search = h('input', { type: 'search', size: 40, placeholder: 'find a text in the documents', 'aria-label': 'search' });
    fill(body, h('section', {}, h('div', { class: 'heading' }, h('h2', {}, 'Sources'), saveButtons('sources', null, table)),
      h('p', { class: 'note' }, `Packed by ${reply.packing} in rows of ${reply.length} tokens. `, notes.join('; ')),
      h('div', { class: 'scroll' }, counts)), rendered(reply.html), h('section', {}, h('h2', {}, 'Rows'), head, rows),
    h('section', {}, h('h2', {}, 'Search'), h('form', { class: 'controls', onsubmit: (event) => { event.preventDefault(); find(0); } }, search,
      h('button', { type: 'submit' }, 'Find')), hits));

    async function showRows() {
      remember('data', { run: view.run, file: view.file, row: view.row });
      try {
        const answer = await get('/api/data/rows', { run: view.run, file: view.file, row: view.row });
        const go = (row) => { view.row = Math.min(Math.max(0, row), answer.count - 1); showRows(); };
        fill(head, h('button', { type: 'button', onclick: () => go(view.row - 6), disabled: view.row === 0 }, 'Before'),
          field('from row', h('input', { type: 'number', min: 0, max: answer.count - 1, value: view.row, onchange: (event) => go(Number(event.target.value)) })),
          h('span', { class: 'count' }, `of ${answer.count.toLocaleString('en')}`),
          h('button', { type: 'button', onclick: () => go(view.row + 6), disabled: view.row + 6 >= answer.count }, 'Next'),
          h('span', { class: 'legend' }, h('span', { class: 'tok loss' }, 'predicts with loss'), h('span', { class: 'tok' }, 'without'),
            h('span', { class: 'tok odd' }, 'next document'), h('span', { class: 'tok pad' }, 'padding')));
        fill(rows, answer.rows.map((row) => h('article', { class: 'row' }, h('h3', {}, `row ${row.row}: ${row.documents} document${row.documents === 1 ? '' : 's'}, `
          + `${row.trained} targets with loss, ${row.padding} padding`), tokens(row.tokens), row.cut ? h('p', { class: 'note' }, `${row.cut} more tokens`) : null,
        mediaList(row.media))));
      } catch (error) {
        fill(rows, failure(error));
      }
    }

    async function find(start) {
      try {
        const reply = await get('/api/data/search', { run: view.run, file: view.file, text: search.value, start });
        const list = reply.hits.map((hit) => h('p', { class: 'hit-line' }, h('button', { class: 'quiet', type: 'button', onclick: () => open(hit.document) },
          `document ${hit.document}`), h('span', {}, hit.before, h('mark', {}, hit.hit), hit.after)));
        fill(hits, reply.hits.length ? list : h('p', { class: 'note' }, 'Not found.'), reply.next !== null
          ? h('button', { type: 'button', onclick: () => find(reply.next) }, `Go on from document ${reply.next}`) : null);
      } catch (error) {
        fill(hits, failure(error));
      }
    }

    async function open(n) {
      const reply = await get('/api/data/document', { run: view.run, file: view.file, document: n });
      fill(hits, h('article', { class: 'row' }, h('h3', {}, `document ${reply.document} of ${reply.count}, ${reply.tokens.length + reply.cut} tokens`),
        tokens(reply.tokens.map((token) => ({ ...token, segment: 1, loss: false }))), mediaList(reply.media)));
    }
    showRows();
  }
  await load();
  return null;
}

function tokens(list) {
  return h('div', { class: 'strip-tokens dense' }, runsOf(list).map(({ token, count }) => h('span', {
    class: `tok ${token.kind} ${token.loss ? 'loss' : ''} ${token.segment === 0 ? 'pad' : token.segment % 2 ? '' : 'odd'}`,
    title: `id ${token.id}, position ${token.position ?? ''}, document ${token.segment}${token.target !== undefined ? `, predicts ${token.target}` : ''}`,
  }, label(token), count > 1 ? h('sub', {}, ` \u00d7${count}`) : null)));
}

// Codes of one picture or sound, and padding, are one chip with their number.
function runsOf(list) {
  const groups = [];
  for (const token of list) {
    const last = groups[groups.length - 1];
    const isCode = token.kind === 'image' || token.kind === 'audio' || token.segment === 0 || ['patch', 'frame'].includes(token.piece);
    if (isCode && last && last.token.kind === token.kind && last.token.segment === token.segment && (last.token.piece === token.piece
      || token.kind !== 'special') && last.token.loss === token.loss) last.count += 1;
    else groups.push({ token, count: 1 });
  }
  return groups;
}

const label = (token) => (token.segment === 0 ? 'pad' : token.kind === 'text' ? visible(token.piece)
  : token.kind === 'special' ? `\u27e8${token.piece}\u27e9` : token.kind);

function mediaList(media) {
  return media.length ? h('div', { class: 'chips' }, media.map((item) => (item.kind === 'image'
    ? h('img', { src: item.address, alt: 'decoded from its codes', class: 'decoded' })
    : h('audio', { src: item.address, controls: true, preload: 'metadata' })))) : null;
}
