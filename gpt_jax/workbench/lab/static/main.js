// The shell of the lab: the bar, and the page that the address names, as in #/compare?run=a&run=b.
import { failure, fill, h, link } from './dom.js';
import * as compare from './compare.js';
import * as data from './data.js';
import * as inside from './inside.js';
import * as playground from './playground.js';
import * as run from './run.js';
import * as runs from './runs.js';
import * as studies from './studies.js';

const PAGES = { runs, compare, run, studies, inside, data, playground };
const BAR = [['runs', 'Runs'], ['compare', 'Compare'], ['studies', 'Studies'], ['inside', 'Look inside'], ['data', 'Data'],
  ['playground', 'Playground']];
let leave = null; // stops what the present page does in the background
let shown = null;

function parse() {
  const [page, query] = (location.hash.slice(2) || 'runs').split('?');
  return { page: PAGES[page] ? page : 'runs', params: new URLSearchParams(query || '') };
}

async function open() {
  const { page, params } = parse();
  if (shown === location.hash) return;
  shown = location.hash;
  if (leave) leave();
  leave = null;
  const links = BAR.map(([name, label]) => h('a', { href: link(name), class: name === page ? 'here' : '' }, label));
  const bar = document.getElementById('bar');
  fill(bar, bar.querySelector('.brand'), h('nav', {}, links));
  const holder = h('div');
  fill(document.getElementById('page'), holder);
  document.title = `${PAGES[page].TITLE} \u00b7 gpt_jax lab`;
  try {
    const stop = await PAGES[page].show(holder, params);
    if (holder.isConnected) leave = stop;
    else if (stop) stop(); // another page was opened meanwhile
  } catch (error) {
    fill(holder, failure(error));
  }
}

// Keep the address of a page as its controls change, without opening it again.
export function remember(page, params) {
  shown = link(page, params);
  history.replaceState(null, '', shown);
}

window.addEventListener('hashchange', open);
open();
