// Plays films: JPEG pictures with their times (film.py), at real speed or faster, and scrubs.
// The page calls grapePlayer.load; keys that only move the film never leave the browser.
'use strict';

const grapePlayer = (() => {
  const films = new Map();   // url -> promise of {header, pictures}
  const KEPT = 4;
  const SPEEDS = [0.25, 0.5, 1, 2, 4, 8];
  let film = null, url = '', frame = 0, playing = false, speed = 1, began = 0, from = 0, drawn = 0;

  const $ = (id) => document.getElementById(id);

  async function fetchFilm(address) {
    const answer = await fetch(address);
    if (!answer.ok) throw new Error(await answer.text());
    const buffer = await answer.arrayBuffer();
    const size = new DataView(buffer).getUint32(0, true);
    const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, size)));
    const pictures = [];
    let at = 4 + size;
    for (const length of header.sizes) {
      pictures.push(new Blob([new Uint8Array(buffer, at, length)], {type: 'image/jpeg'}));
      at += length;
    }
    return {header, pictures};
  }

  function get(address) {
    if (!films.has(address)) {
      films.set(address, fetchFilm(address));
      films.get(address).catch(() => films.delete(address));
      while (films.size > KEPT) films.delete(films.keys().next().value);
    }
    return films.get(address);
  }

  async function draw(number) {
    const mine = ++drawn, shown = film;
    const bitmap = await createImageBitmap(shown.pictures[number]);
    if (mine !== drawn && playing) return;      // a later picture is on its way
    if (shown !== film) return;
    const canvas = $('film');
    if (!canvas) return;
    if (canvas.width !== bitmap.width || canvas.height !== bitmap.height) {
      canvas.width = bitmap.width;
      canvas.height = bitmap.height;
    }
    canvas.getContext('2d').drawImage(bitmap, 0, 0);
    const times = film.header.times_s, last = times[times.length - 1];
    $('film-scrub').max = times.length - 1;
    $('film-scrub').value = number;
    $('film-time').textContent =
      `${times[number].toFixed(1)} / ${last.toFixed(1)} s  ${speed}x ${playing ? '' : '(paused)'}`;
  }

  function seek(number) {
    if (!film) return;
    frame = Math.max(0, Math.min(film.pictures.length - 1, number));
    from = film.header.times_s[frame];
    began = performance.now();
    return draw(frame);
  }

  function tick() {
    if (film && playing) {
      const times = film.header.times_s;
      const now = from + (performance.now() - began) / 1000 * speed;
      let next = frame;
      while (next + 1 < times.length && times[next + 1] <= now) next++;
      if (next !== frame) { frame = next; draw(frame); }
      if (frame === times.length - 1) { playing = false; draw(frame); }
    }
    requestAnimationFrame(tick);
  }

  async function load(address, nexts) {
    url = address;
    playing = false;
    film = null;
    $('film-time').textContent = 'loading ...';
    try {
      const got = await get(address);
      if (url !== address) return;
      film = got;
      $('film-problem').textContent = '';
      await seek(0);
      playing = true;
      began = performance.now();
      emitEvent('film_shown', {url: address});
    } catch (error) {
      if (url !== address) return;
      $('film-problem').textContent = `No pictures: ${error.message}`;
      $('film-time').textContent = '';
      emitEvent('film_shown', {url: address});
    }
    for (const next of nexts) get(next).catch(() => {});   // the next ones, while this one plays
  }

  function toggle() {
    if (!film) return;
    if (!playing && frame === film.pictures.length - 1) frame = 0;
    playing = !playing;
    seek(frame);
  }

  function faster(by) {
    const index = Math.max(0, Math.min(SPEEDS.length - 1, SPEEDS.indexOf(speed) + by));
    speed = SPEEDS[index];
    seek(frame);
  }

  document.addEventListener('keydown', (event) => {
    if (['INPUT', 'TEXTAREA'].includes(document.activeElement?.tagName) || !$('film')) return;
    const step = event.shiftKey ? 10 : 1;
    const keys = {
      ' ': toggle,
      ArrowRight: () => { playing = false; seek(frame + step); },
      ArrowLeft: () => { playing = false; seek(frame - step); },
      ArrowUp: () => faster(1),
      ArrowDown: () => faster(-1),
    };
    if (!keys[event.key]) return;
    event.preventDefault();
    if (document.activeElement?.tagName === 'BUTTON') document.activeElement.blur();
    keys[event.key]();
  });
  document.addEventListener('input', (event) => {
    if (event.target.id === 'film-scrub') { playing = false; seek(Number(event.target.value)); }
  });
  requestAnimationFrame(tick);

  return {
    load, toggle, faster,
    state: () => ({
      url, frame, playing, speed,
      frames: film ? film.pictures.length : 0,
      cached: [...films.keys()],
    }),
  };
})();
