// The explorer of a report. Chosen are a place (direction, kind of site, layer, step) and a pair.
// `data` comes from explorer.py, `specs` are its three charts, `figures` the page's other ones. Every control is a native
// one, so that all of them can be reached by keyboard; a click in a chart does the same.
"use strict";

async function explore(data, specs, figures) {
  const byId = id => document.getElementById(id);
  const bytes = text => Uint8Array.from(atob(text), letter => letter.charCodeAt(0)).buffer;
  const values = {
    other: new Float32Array(bytes(data.other)),          // [place, pair]: the probability of the partner's answer
    unrelated: new Float32Array(bytes(data.unrelated)),
    decoded: new Uint32Array(bytes(data.decoded)),       // [place, pair]: which of data.answers was decoded
  };
  const {pairs, places} = data, count = pairs.length;
  const option = (value, text = value) => Object.assign(document.createElement("option"), {value, textContent: text});
  const at = (place, pair) => place * count + pair;
  const unsigned = text => Number(text) === 0 ? text.replace("-", "") : text;  // no minus before a zero
  const round = (value, digits = 2) => value === null || Number.isNaN(value) ? "–" : unsigned(value.toFixed(digits));
  const answerText = answer => answer === null ? "no number" : String(answer);

  // The transfer of a source to a pair at a place: 0 is the host's probability of the partner's answer, 1 the
  // partner's own. A pair whose two probabilities differ by less than 0.1 has none.
  function effect(source, place, pair) {
    const {clean, corrupted} = pairs[pair], denoising = places[place].direction === "denoising";
    const partnersAnswer = denoising ? "probability_clean" : "probability_corrupted";
    const [host, partner] = (denoising ? [corrupted, clean] : [clean, corrupted]).map(run => run[partnersAnswer]);
    if (host === null || partner === null || Math.abs(partner - host) < 0.1) return NaN;
    return (values[source][at(place, pair)] - host) / (partner - host);
  }
  const hasAnswers = data.answers.length > 1;
  const answer = (place, pair) => hasAnswers ? answerText(data.answers[values.decoded[at(place, pair)]]) : "not decoded";

  const views = {};
  for (const [name, spec] of Object.entries(specs))
    views[name] = (await vegaEmbed("#" + name, spec, {actions: false, renderer: "svg"})).view;

  const chosen = {place: 0, pair: 0, sort: "order", falling: false};
  const fields = ["direction", "panel", "layer", "step"];
  const matching = until => places.map((_, i) => i).filter(
    i => fields.slice(0, until).every(field => places[i][field] === places[chosen.place][field]));

  // Each list offers what there is, given the lists before it.
  function fillControls() {
    fields.forEach((field, place) => {
      const offered = [...new Set(matching(place).map(i => places[i][field]))];
      const named = value => field === "direction" ? `${value}: ${data.directions[value]}` : value;
      byId(field).replaceChildren(...offered.map(value => option(value, named(value))));
      byId(field).value = places[chosen.place][field];
    });
    byId("pair").value = chosen.pair;
  }

  // The place that has the new value, and of the rest as much as there is.
  function change(field, value) {
    const wanted = {...places[chosen.place], [field]: value}, kept = fields.slice(0, fields.indexOf(field) + 1);
    const fitting = places.map((_, i) => i).filter(i => kept.every(name => places[i][name] === wanted[name]));
    const likeness = i => fields.filter(name => places[i][name] === wanted[name]).length;
    chosen.place = fitting.reduce((best, i) => likeness(i) > likeness(best) ? i : best, fitting[0]);
    show();
  }

  const placeRow = (i, shown) => ({
    place: i, layer: places[i].layer, step: places[i].step,
    layer_order: places[i].order[0], step_order: places[i].order[1], ...shown,
  });

  async function drawPlaces() {
    const panel = matching(2);
    const pooled = panel.map(i => placeRow(i, {
      effect: places[i].effect, shown: round(places[i].effect, 3),
      interval: places[i].low === null ? "none" : `${round(places[i].low, 3)} to ${round(places[i].high, 3)}`,
      p: places[i].p_fwer === null ? "none" : places[i].p_fwer.toPrecision(2), n: places[i].n,
    }));
    const own = panel.map(i => {
      const moved = effect("other", i, chosen.pair);
      return placeRow(i, {effect: Number.isNaN(moved) ? null : moved, shown: round(moved, 3), n: 1,
        answer: hasAnswers ? answer(i, chosen.pair) : round(moved)});
    });
    const reach = Math.max(0.05, ...pooled.map(row => Math.abs(row.effect ?? 0)));
    for (const [name, rows, limit] of [["overview", pooled, reach], ["own", own, 1]])
      await views[name].signal("reach", limit).signal("chosen", chosen.place).data("places", rows).runAsync();
  }

  async function drawStrip() {
    const place = chosen.place, key = i => effect("other", i.place, i.pair);
    const order = pairs.map((_, pair) => pair).sort((a, b) => key({place, pair: a}) - key({place, pair: b}));
    const rows = [];
    for (const [rank, pair] of order.entries())
      for (const [source, donor] of [["unrelated", "unrelated donor"], ["other", "other run"]]) {
        const moved = effect(source, place, pair);
        if (!Number.isNaN(moved))
          rows.push({rank, pair, donor, effect: moved, shown: Math.min(2, Math.max(-1, moved)), name: pairs[pair].id,
            answer: source === "other" ? answer(place, pair) : "not kept"});
      }
    await views.strip.signal("chosen", chosen.pair).signal("last", Math.max(1, count - 1)).data("strip", rows).runAsync();
  }

  const cells = {
    order: pair => pair,
    pair: pair => pairs[pair].id,
    edit: pair => (pairs[pair].edit ?? "").replaceAll("_", " "),
    question: pair => pairs[pair].clean.question,
    clean: pair => pairs[pair].clean.key,
    corrupted: pair => pairs[pair].corrupted.key,
    decoded: pair => answer(chosen.place, pair),
    effect: pair => effect("other", chosen.place, pair),
    unrelated: pair => effect("unrelated", chosen.place, pair),
  };
  const shownCells = [...byId("pairs").querySelectorAll("th button")].map(button => button.dataset.sort);
  const text = (name, pair) => {
    const value = cells[name](pair);
    return typeof value === "number" ? round(value) : value;
  };

  function compare(a, b) {
    const [x, y] = [cells[chosen.sort](a), cells[chosen.sort](b)];
    const unlike = typeof x === "number" ? (Number.isNaN(x) ? 1 : Number.isNaN(y) ? -1 : x - y)
      : x.localeCompare(y, undefined, {numeric: true});
    return chosen.falling ? -unlike : unlike;
  }

  const lines = pairs.map((pair, i) => {
    const row = document.createElement("tr");
    for (const name of shownCells) row.append(document.createElement("td"));
    const button = Object.assign(document.createElement("button"), {type: "button", textContent: pair.id});
    button.addEventListener("click", () => choosePair(i));
    row.firstChild.append(button);
    return row;
  });

  function fillTable() {
    const wanted = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const found = pairs.map((_, pair) => pair).filter(pair => {
      const {id, clean, corrupted} = pairs[pair];
      const all = [id, cells.edit(pair), clean.question, corrupted.question, clean.key, corrupted.key,
        answer(chosen.place, pair)].join(" ").toLowerCase();
      return wanted.every(word => all.includes(word));
    }).sort(compare);
    for (const pair of found) {
      const row = lines[pair];
      row.className = pair === chosen.pair ? "chosen" : "";
      shownCells.forEach((name, i) => { if (i) row.children[i].textContent = text(name, pair); });
    }
    byId("pairs").tBodies[0].replaceChildren(...found.map(pair => lines[pair]));
    byId("found").textContent = `${found.length} of ${count} pairs`;
  }

  // A question with the words that the other one does not have at that place marked.
  function marked(question, other) {
    const [own, others] = [question.split(/(\s+)/), other.split(/(\s+)/)];
    return own.map((word, i) => {
      if (word === others[i] || !word.trim()) return document.createTextNode(word);
      return Object.assign(document.createElement("mark"), {textContent: word});
    });
  }

  function showPair() {
    const pair = pairs[chosen.pair];
    byId("pair-name").textContent = `Pair ${pair.id}` + (pair.edit ? ` (${pair.edit.replaceAll("_", " ")})` : "");
    for (const [side, other] of [["clean", "corrupted"], ["corrupted", "clean"]]) {
      byId(`${side}-question`).replaceChildren(...marked(pair[side].question, pair[other].question));
      byId(`${side}-answer`).textContent = `key ${pair[side].key}; the unpatched run answers ${answerText(pair[side].answer)}` +
        ` (probability of the clean answer ${round(pair[side].probability_clean)}, of the corrupted ` +
        `${round(pair[side].probability_corrupted)})`;
    }
    byId("patched-answer").textContent = `${answer(chosen.place, chosen.pair)}; transfer ` +
      `${round(effect("other", chosen.place, chosen.pair))}, of an unrelated donor ` +
      round(effect("unrelated", chosen.place, chosen.pair));
  }

  function describePlace() {
    const place = places[chosen.place], where = [place.panel];
    const named = (noun, label) => `${noun}${/[–,]/.test(label) ? "s" : ""} ${label.replace(".", ", head ")}`;
    if (place.layer !== "all") where.push(named("layer", place.layer));
    if (place.step !== "all") where.push(named("step", place.step));
    byId("chosen").textContent = `${where.join(", ")}, ${data.directions[place.direction]}: ` +
      `${place.specific ? "specific transfer" : "transfer"} ${round(place.effect)}` +
      (place.low === null ? "" : ` [${round(place.low)}, ${round(place.high)}]`) + `, n = ${place.n} pairs in ${place.clusters} clusters` +
      (place.p_fwer === null ? "" : `, family-wise p ${place.p_fwer.toPrecision(2)}`) +
      (place.critical ? ", critical" : "") + ".";
  }

  let drawing = Promise.resolve();
  function show() {
    fillControls();
    describePlace();
    showPair();
    fillTable();
    history.replaceState(null, "", `#place=${chosen.place}&pair=${encodeURIComponent(pairs[chosen.pair].id)}`);
    drawing = drawing.then(drawPlaces).then(drawStrip);
  }

  function choosePair(pair) {
    chosen.pair = pair;
    show();
  }

  function download(name, kind, content) {
    const link = Object.assign(document.createElement("a"), {download: name});
    link.href = URL.createObjectURL(new Blob([content], {type: kind}));
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }
  // Text that a spreadsheet would run as a formula begins with an apostrophe; numbers stay numbers.
  const plain = value => typeof value === "string" && /^[=+\-@\t\r]/.test(value) && Number.isNaN(Number(value)) ? `'${value}` : value ?? "";
  const csv = rows => rows.map(row => row.map(plain).map(
    value => /[",\n\r]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : value).join(",")).join("\n");
  const finite = value => Number.isNaN(value) ? "" : value;

  const saved = {
    "save-places": () => {
      const names = [...fields, "effect", "low", "high", "p_fwer", "n", "clusters", "specific", "critical"];
      download("places.csv", "text/csv", csv([names, ...places.map(place => names.map(name => place[name]))]));
    },
    "save-values": () => {
      const head = ["pair_id", ...fields, "probability_clean_run", "probability_corrupted_run", "probability_patched",
        "probability_unrelated", "answer"];
      const name = place => place.direction === "denoising" ? "probability_clean" : "probability_corrupted";
      const rows = places.flatMap((place, i) => pairs.map((pair, j) => [
        pair.id, ...fields.map(field => place[field]), pair.clean[name(place)], pair.corrupted[name(place)],
        finite(values.other[at(i, j)]), finite(values.unrelated[at(i, j)]), data.answers[values.decoded[at(i, j)]]]));
      download("pairs.csv", "text/csv", csv([head, ...rows]));
    },
    "save-specs": () => download("figures.vl.json", "application/json", JSON.stringify(figures, null, 1)),
  };
  for (const [id, save] of Object.entries(saved)) byId(id).addEventListener("click", save);

  for (const field of fields) byId(field).addEventListener("change", event => change(field, event.target.value));
  byId("pair").replaceChildren(...pairs.map((pair, i) => option(i, pair.id)));
  byId("pair").addEventListener("change", event => choosePair(Number(event.target.value)));
  byId("search").addEventListener("input", fillTable);
  for (const button of byId("pairs").querySelectorAll("th button"))
    button.addEventListener("click", () => {
      chosen.falling = chosen.sort === button.dataset.sort && !chosen.falling;
      chosen.sort = button.dataset.sort;
      for (const head of byId("pairs").querySelectorAll("th")) head.removeAttribute("aria-sort");
      button.closest("th").setAttribute("aria-sort", chosen.falling ? "descending" : "ascending");
      fillTable();
    });
  for (const name of ["overview", "own"])
    views[name].addEventListener("click", (_, item) => {
      if (item?.datum?.place !== undefined) { chosen.place = item.datum.place; show(); }
    });
  views.strip.addEventListener("click", (_, item) => {
    if (item?.datum?.pair !== undefined) choosePair(item.datum.pair);
  });

  // What was chosen before, if the page was opened by a link to it; else the largest effect.
  const asked = new URLSearchParams(location.hash.slice(1));
  const largest = places.reduce((best, place, i) => (place.effect ?? 0) > (places[best].effect ?? 0)
    && place.layer + place.step !== "allall" ? i : best, 0);
  const place = Number(asked.get("place") ?? largest);
  chosen.place = Number.isInteger(place) && place >= 0 && place < places.length ? place : largest;
  chosen.pair = Math.max(0, pairs.findIndex(pair => pair.id === asked.get("pair")));
  show();
  await drawing;
}
