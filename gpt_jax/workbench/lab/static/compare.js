// Curves of several runs on shared axes, the settings that differ, and samples side by side.
import { baseName, cut, failure, field, fill, get, h, link, number, option } from './dom.js';
import { chart, colorOf } from './chart.js';
import { activations, difference } from './difference.js';
import { saveButtons } from './export.js';
import { remember } from './main.js';
import { badge } from './runs.js';

export const TITLE = 'Compare';
const AXES = ['steps', 'tokens', 'FLOPs', 'hours'];
const POLL = 4000;

// Short names that still tell the runs apart.
function labels(runs) {
  const short = runs.map((run) => run.split('/').pop());
  return runs.map((run, i) => (short.filter((x) => x === short[i]).length > 1 ? baseName(run) : short[i]));
}

export async function show(page, params) {
  const view = { runs: params.getAll('run'), metrics: params.getAll('metric'), x: params.get('x') || 'steps',
    smooth: Number(params.get('smooth') || 0.02), xLog: params.get('xlog') === '1', yLog: params.get('ylog') === '1' };
  if (!view.metrics.length) view.metrics = ['loss', 'valid_loss'];
  const all = (await get('/api/runs')).rows;
  const chips = h('div', { class: 'chips' }), charts = h('div', { class: 'charts' }), message = h('div');
  const diff = h('section'), samples = h('section'), scored = h('div'), controls = h('div', { class: 'controls' });
  fill(page, h('h1', {}, 'Compare'), chips, controls, message, charts, diff, samples, scored);
  let timer = null, drawn = '';

  function update(rest = true) {
    remember('compare', { run: view.runs, metric: view.metrics, x: view.x, smooth: view.smooth,
      xlog: view.xLog ? 1 : '', ylog: view.yLog ? 1 : '' });
    drawChips();
    load();
    if (rest) {
      loadDiff();
      loadSamples();
      const names = labels(view.runs);
      fill(scored, view.runs.length === 2 ? [difference(view.runs, names), activations(view.runs, names)] : null);
    }
  }

  function drawChips(states = {}) {
    const names = labels(view.runs);
    const add = h('select', { 'aria-label': 'add a run', onchange: (event) => {
      view.runs = [...view.runs, event.target.value];
      update();
    } }, option('', 'add a run\u2026', ''), all.filter((run) => !view.runs.includes(run.name)).map((run) => option(run.name, run.name)));
    fill(chips, view.runs.map((run, i) => h('span', { class: 'chip', style: { borderColor: colorOf(i) }, title: run },
      h('a', { href: link('run', { run }) }, names[i]), states[run] && states[run] !== 'done' ? badge({ state: states[run] }) : null,
      h('button', { class: 'quiet', type: 'button', 'aria-label': `leave out ${run}`,
        onclick: () => { view.runs = view.runs.filter((x) => x !== run); update(); } }, '\u00d7'))), add);
  }

  function drawControls(known) {
    const toggle = (label, key) => h('label', { class: 'check' }, h('input', { type: 'checkbox', checked: view[key],
      onchange: (event) => { view[key] = event.target.checked; drawn = ''; update(false); } }), label);
    const smooth = h('input', { type: 'range', min: 0, max: 0.2, step: 0.01, value: view.smooth,
      oninput: (event) => { view.smooth = Number(event.target.value); update(false); } });
    fill(controls,
      field('x axis', h('select', { onchange: (event) => { view.x = event.target.value; update(false); } },
        AXES.map((axis) => option(axis, axis, view.x)))),
      field('smoothing', smooth), toggle('log x', 'xLog'), toggle('log y', 'yLog'),
      view.metrics.map((metric) => h('span', { class: 'chip' }, metric, h('button', { class: 'quiet', type: 'button',
        'aria-label': `leave out ${metric}`,
        onclick: () => { view.metrics = view.metrics.filter((x) => x !== metric); drawn = ''; update(false); } }, '\u00d7'))),
      h('select', { 'aria-label': 'add a metric', onchange: (event) => {
        view.metrics = [...view.metrics, event.target.value];
        drawn = '';
        update(false);
      } }, option('', 'add a metric\u2026', ''), known.filter((name) => !view.metrics.includes(name)).map((name) => option(name, name))));
  }

  async function load() {
    clearTimeout(timer);
    if (!view.runs.length) {
      fill(charts);
      fill(message, h('p', { class: 'note' }, 'Choose runs above, or in the table of runs.'));
      return;
    }
    try {
      const reply = await get('/api/curves', { run: view.runs, metric: view.metrics, x: view.x, smooth: view.smooth });
      const text = JSON.stringify([reply, view]);
      if (text !== drawn) {
        drawn = text;
        draw(reply);
      }
      const isLive = reply.runs.some((run) => run.state === 'running');
      if (isLive && timer !== -1) timer = setTimeout(() => (document.hidden ? (timer = setTimeout(load, POLL)) : load()), POLL);
    } catch (error) {
      fill(message, failure(error));
    }
  }

  function draw(reply) {
    const names = labels(view.runs);
    drawChips(Object.fromEntries(reply.runs.map((run) => [run.name, run.state])));
    if (!controls.contains(document.activeElement) || !controls.children.length) drawControls(reply.known);
    fill(message, reply.notes.length ? h('p', { class: 'note' }, `${reply.notes.join('; ')}.`) : null);
    fill(charts, reply.charts.map(({ title, lines }) => (lines.length ? chart(lines.map((line) => {
      const index = view.runs.indexOf(line.run);
      return { ...line, label: names[index], index };
    }), { title, xLabel: reply.x, xLog: view.xLog, yLog: view.yLog, height: 320 })
      : h('p', { class: 'note' }, `${title}: not measured in these runs.`))));
  }

  async function loadDiff() {
    if (view.runs.length < 2) { fill(diff); return; }
    const { runs, rows } = await get('/api/diff', { run: view.runs });
    const names = labels(runs);
    const table = () => ({ header: ['setting', ...names], rows });
    fill(diff, h('div', { class: 'heading' }, h('h2', {}, 'Settings that differ'), saveButtons('settings', null, table)),
      rows.length ? h('div', { class: 'scroll' }, h('table', { class: 'settings-diff' },
        h('thead', {}, h('tr', {}, h('th', {}, 'setting'), names.map((name, i) => h('th', { style: { color: colorOf(i) } }, name)))),
        h('tbody', {}, rows.map(([key, ...values]) => h('tr', {}, h('td', {}, h('code', {}, key)),
          values.map((value) => h('td', { title: value || '' }, value === null ? h('i', {}, 'absent') : cut(value, 60))))))))
        : h('p', { class: 'note' }, 'None.'));
  }

  async function loadSamples(step = '') {
    if (!view.runs.length) { fill(samples); return; }
    const reply = await get('/api/samples', { run: view.runs, step });
    if (!reply.names.length) { fill(samples); return; }
    const names = labels(view.runs), { steps } = reply;
    const at = step === '' ? steps.length - 1 : steps.indexOf(step);
    const slider = h('input', { type: 'range', min: 0, max: steps.length - 1, value: at, 'aria-label': 'step',
      onchange: (event) => loadSamples(steps[Number(event.target.value)]) });
    const show = (column, name) => {
      const sample = column.samples[name];
      if (!sample) return h('td', { class: 'none' }, '\u2013');
      const src = `/file?${new URLSearchParams({ run: column.run, file: sample.file })}`;
      if (sample.kind === 'image') return h('td', {}, h('img', { src, alt: `${name} of ${column.run}` }));
      if (sample.kind === 'audio') return h('td', {}, h('audio', { controls: true, src, preload: 'none' }));
      return h('td', {}, h('pre', {}, sample.text || '(empty)'));
    };
    fill(samples, h('div', { class: 'heading' }, h('h2', {}, 'Samples'),
      steps.length > 1 ? field(`up to step ${number(steps[at])}`, slider) : null),
    h('div', { class: 'scroll' }, h('table', { class: 'side' },
      h('thead', {}, h('tr', {}, h('th'), reply.columns.map((column, i) => h('th', { style: { color: colorOf(i) } },
        names[i], h('small', {}, column.step === null ? ' no samples' : ` step ${number(column.step)}`))))),
      h('tbody', {}, reply.names.map((name) => h('tr', {}, h('th', {}, name), reply.columns.map((column) => show(column, name))))))));
  }

  drawChips();
  drawControls([]);
  update();
  return () => { clearTimeout(timer); timer = -1; };
}
