"use strict";
// The report's own script. Text that came from programs enters as text nodes only; the one place that sets markup is
// `trusted`, for formulas and pictures that our own code generated and escaped.
(async () => {
  const $ = (id) => document.getElementById(id);
  const make = (tag, attributes = {}, ...inside) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (value !== false && value != null) node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...inside.filter((x) => x != null));
    return node;
  };
  const trusted = (markup, name) => {
    const holder = make("div", { class: "wide", tabindex: "0", role: "region", "aria-label": name });
    holder.innerHTML = markup;
    return holder;
  };
  const unpack = async (id) => {
    const text = atob($(id).textContent.trim()), bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    $(id).textContent = "";
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"))).json();
  };
  const number = (v) => (v == null ? "-" : Math.abs(v) >= 1000 ? Math.round(v).toLocaleString("en") : v.toFixed(3));
  const triple = (t) => (t ? number(t[0]) + (t.length > 2 ? ` [${number(t[1])}, ${number(t[2])}]` : "") : "-");

  const data = await unpack("data");
  const all = data.candidates;
  all.forEach((c, i) => (c.index = i));
  const byId = new Map(all.map((c) => [c.id, c]));
  const children = all.map(() => []);
  for (const c of all) if (c.p.length) children[c.p[0]].push(c.index);
  let more = null, whole = false; // pages and sources: of the candidate that is shown first, of all when another is wanted
  const GATES = ["kept", "kept, unproven", "broken"], CLASSES = ["proven", "unclear", "failed"];
  const from = (c) => (c.lib ? "library" : c.ctl ? `${c.a} (control)` : c.a);
  const gates = (c) => (c.v == null ? c.st : GATES[c.v] + (c.sealed === 2 ? ", broken on sealed items" : ""));
  const ranked = all.filter((c) => c.v != null);
  const arms = [...new Set(all.map(from))];
  const COLOURS = ["#7b8794", "#1c78c8", "#d1661f", "#2e8b57", "#a04fa6", "#9a7d1f", "#3b9aa8"];
  const colour = (arm) => COLOURS[arm === "library" ? 0 : 1 + (arms.filter((a) => a !== "library").indexOf(arm) % 6)];

  // ---- theme -----------------------------------------------------------------------------------------------------
  const themes = ["as the system", "light", "dark"];
  let theme = 0;
  $("theme").hidden = false;
  $("theme").addEventListener("click", () => {
    theme = (theme + 1) % 3;
    $("theme").textContent = `Theme: ${themes[theme]}`;
    if (theme) document.documentElement.dataset.theme = themes[theme];
    else delete document.documentElement.dataset.theme;
  });

  // Marks are groups without a role, so their labels say nothing to a reader of the page; the section's text does.
  const quiet = (figure) => {
    for (const node of figure.querySelectorAll("g[aria-label], g[aria-description]")) {
      node.dataset.mark = node.getAttribute("aria-label") ?? "";
      ["aria-label", "aria-description"].forEach((a) => node.removeAttribute(a));
    }
    return figure;
  };

  // ---- frontier --------------------------------------------------------------------------------------------------
  const plotted = (id, draw, otherwise = "Nothing to draw.") => {
    const node = $(id);
    let width = 0;
    const redraw = () => {
      const now = Math.floor(node.clientWidth);
      if (now < 50 || now === width) return;
      width = now;
      const figure = draw(now);
      node.replaceChildren(...(figure ? [quiet(figure)] : [make("p", { class: "quiet" }, otherwise)]));
    };
    new ResizeObserver(redraw).observe(node);
    redraw();
    return () => ((width = 0), redraw());
  };
  const title = (c) =>
    [`${c.id} ${c.n}`, `${from(c)}, rank ${c.r ?? "-"}, ${gates(c)}`, `${data.accuracy} ${triple(c.q)}`,
      `${data.speed} ${triple(c.s)} (${data.how})`, c.on === "search" ? "on the search's items" : `on ${c.on} items`,
      ...(c.w ? [`worst task ${c.w.task}: ${number(c.w.accuracy)}, dense ${number(c.w.dense)}`] : []), c.i ?? ""]
      .filter(Boolean).join("\n");
  const front = ranked.filter((c) => c.f === 0 && c.v === ranked[0].v);
  const barred = [...new Set([...front, ...ranked.filter((c) => c.lib || c.on !== "search" || c.id === data.winner)])];
  let chosen = null;
  // Of thousands of marks most lie on others: one is drawn for each few pixels; the table has all.
  const thinned = (list, x, y) => {
    if (list.length < 3000) return list;
    const [x0, x1] = d3.extent(list, x), [y0, y1] = d3.extent(list, y), seen = new Set();
    return list.filter((c) => {
      const cell = `${from(c)} ${c.v} ${Math.round((400 * (x(c) - x0)) / (x1 - x0 || 1))} ${Math.round((200 * (y(c) - y0)) / (y1 - y0 || 1))}`;
      return !seen.has(cell) && seen.add(cell);
    });
  };
  // And thousands of elements take long to make: one path holds all marks of an arm and a verdict.
  const inPaths = (list, { x, y }) => {
    const r = 2.2, kinds = d3.group(list, (c) => `${c.v} ${from(c)}`), group = d3.create("svg:g").attr("data-mark", "dot");
    const circle = (a, b) => `M${a - r},${b}a${r},${r} 0 1,0 ${2 * r},0a${r},${r} 0 1,0 ${-2 * r},0`;
    const cross = (a, b) => `M${a - r},${b - r}l${2 * r},${2 * r}m0,${-2 * r}l${-2 * r},${2 * r}`;
    for (const of of kinds.values()) {
      const { v } = of[0], ink = colour(from(of[0])), mark = v === 2 ? cross : circle;
      const d = of.map((c) => mark(Math.round(10 * x(c.s[0])) / 10, Math.round(10 * y(c.q[0])) / 10)).join("");
      group.append("path").attr("d", d).attr("stroke", ink).attr("stroke-width", 1.5).attr("fill", v === 0 ? ink : "none");
    }
    return group.node();
  };
  const frontier = (width) => {
    if (!ranked.length) return null;
    const x = (c) => c.s[0], y = (c) => c.q[0];
    const drawn = thinned(ranked, x, y), steps = front.slice().sort((a, b) => a.s[0] - b.s[0]);
    const symbol = (c) => ["circle", "circle", "times"][c.v];
    const figure = Plot.plot({
      width, height: Math.min(560, Math.max(320, width * 0.5)), marginLeft: 56, marginBottom: 42, grid: true,
      style: { fontSize: "12px" },
      x: { label: `${data.speed} (${data.how}) →`, nice: true }, y: { label: `↑ ${data.accuracy}`, nice: true },
      color: { domain: arms, range: arms.map(colour), legend: true },
      symbol: { domain: ["circle", "times"], range: ["circle", "times"] },
      marks: [
        data.gate == null ? null : Plot.ruleY([data.gate], { stroke: "currentColor", strokeDasharray: "2,3" }),
        Plot.line(steps, { x, y, curve: "step-before", stroke: "currentColor", strokeOpacity: 0.5, strokeDasharray: "4,3" }),
        Plot.ruleX(barred.filter((c) => c.q.length > 2), { x, y1: (c) => c.q[1], y2: (c) => c.q[2], stroke: from, strokeOpacity: 0.55 }),
        Plot.ruleY(barred.filter((c) => c.s.length > 2), { y, x1: (c) => c.s[1], x2: (c) => c.s[2], stroke: from, strokeOpacity: 0.55 }),
        ...(drawn.length > 1000 ? [(index, scales) => inPaths(drawn, scales)] : [
          Plot.dot(drawn.filter((c) => c.v !== 0), { x, y, stroke: from, symbol, r: 4 }),
          Plot.dot(drawn.filter((c) => c.v === 0), { x, y, fill: from, stroke: from, r: 4 })]),
        Plot.dot(ranked.filter((c) => c.id === data.winner), { x, y, fill: "#c0271f", symbol: "star", r: 8 }),
        Plot.tip(drawn, Plot.pointer({ x, y, title, maxRadius: 30, lineWidth: 34, pathFilter: "none", fill: "var(--paper)", textPadding: 8, lineHeight: 1.25 })),
      ],
    });
    const svg = figure.tagName === "svg" ? figure : figure.querySelector("svg:last-of-type");
    label(svg, figure);
    const hovered = () => figure.value;
    figure.addEventListener("click", () => hovered() && show(hovered().id, true));
    return figure;
  };
  const label = (svg, figure) => {
    // Names of the library and the winner, each where it hides no other: right, left, above, below, or not at all.
    const sx = figure.scale("x"), sy = figure.scale("y"), taken = [];
    const wanted = ranked.filter((c) => c.lib || c.id === data.winner).sort((a, b) => (b.id === data.winner) - (a.id === data.winner));
    for (const c of wanted) {
      const words = c.n.length > 26 ? c.n.slice(0, 25) + "…" : c.n;
      const w = words.length * 7 + 6, px = sx.apply(c.s[0]), py = sy.apply(c.q[0]);
      for (const [dx, dy] of [[9, 4], [-9 - w, 4], [-w / 2, -10], [-w / 2, 19]]) {
        const box = [px + dx, py + dy - 11, px + dx + w, py + dy + 3];
        if (box[0] < sx.range[0] || box[2] > sx.range[1] + 10 || box[1] < 0) continue;
        if (taken.some((t) => box[0] < t[2] && t[0] < box[2] && box[1] < t[3] && t[1] < box[3])) continue;
        taken.push(box);
        d3.select(svg).append("text").attr("class", "named").attr("x", px + dx).attr("y", py + dy).attr("fill", "currentColor")
          .attr("font-size", 12).attr("paint-order", "stroke").attr("stroke", "var(--paper)").attr("stroke-width", 5).attr("font-weight", 600).text(words);
        break;
      }
    }
  };
  plotted("plot-frontier", frontier);
  const screened = all.filter((c) => c.sc?.[0] && c.sc[1]);
  if (screened.length) {
    $("screened").hidden = false;
    plotted("plot-screen", (width) => {
      const x = (c) => c.sc[1][0], y = (c) => c.sc[0][0], answered = (c) => (c.v == null ? "screened only" : "went on to answer");
      const drawn = thinned(screened, x, y);
      return Plot.plot({ width, height: 300, marginLeft: 56, marginBottom: 42, grid: true, style: { fontSize: "12px" }, x: { label: `${data.speed} (on the screen) →`, nice: true }, y: { label: `↑ ${data.screen}`, nice: true },
        color: { domain: ["screened only", "went on to answer"], range: [COLOURS[0], COLOURS[1]], legend: true },
        marks: [Plot.dot(drawn, { x, y, stroke: answered, r: (c) => (c.v == null ? 2 : 4) }),
          Plot.tip(drawn, Plot.pointer({ x, y, title: (c) => `${c.id} ${c.n}\n${from(c)}, ${gates(c)}\n${data.screen} ${triple(c.sc[0])}\n${data.speed} ${triple(c.sc[1])}`, maxRadius: 30, fill: "var(--paper)", textPadding: 8 }))] });
    });
  }

  // ---- leaderboard -----------------------------------------------------------------------------------------------
  const low = -Infinity;
  const COLUMNS = [
    ["#", (c) => c.r ?? 1e9, (c) => `${c.r ?? "-"}${c.f === 0 ? "*" : ""}`], ["tier", (c) => c.t ?? 1e9, (c) => c.t ?? "-"],
    ["id", (c) => c.index >= 0 && Number(c.id.slice(1)), (c) => c.id], ["name", (c) => c.n.toLowerCase(), null],
    ["gates", (c) => c.v ?? 3, gates],
    [data.accuracy, (c) => (c.q ? c.q[0] : low), (c) => triple(c.q), 1], [data.speed, (c) => (c.s ?? c.sc?.[1] ?? [low])[0], (c) => triple(c.s ?? c.sc?.[1]), 1],
    ["from", from, from],
    ["worst task", (c) => (c.w ? c.w.accuracy - c.w.dense : 1e9), (c) => (c.w ? `${c.w.task} ${number(c.w.accuracy - c.w.dense)}` : "-"), 0,
      (c) => c.w && `${number(c.w.accuracy)}, dense ${number(c.w.dense)}`],
    ["items", (c) => c.on ?? "", (c) => c.on ?? "-"],
    ...(all.some((c) => c.sc) ? [["screen", (c) => c.sc?.[0]?.[0] ?? low, (c) => triple(c.sc?.[0]), 1, () => data.screen]] : []),
    // What else was measured, of anybody, and is not there already.
    ...["accuracy", "decode speed-up", "recall", "density", "perplexity ratio"].map((name, i) =>
      [name, (c) => (c.m[i] ? c.m[i][0] : low), (c) => triple(c.m[i]), 1, null, i])
      .filter(([name, , , , , i]) => all.some((c) => c.m[i]) && name !== data.accuracy && name !== data.speed.replace("_speedup", " speed-up")),
  ];
  const PAGE = 50;
  let sorted = { by: null, up: true }, page = 0, rows = all;
  const head = $("board").tHead.rows[0], body = $("board").tBodies[0];
  head.replaceChildren(...COLUMNS.map(([name, , , down], i) => make("th", { scope: "col" }, make("button", { type: "button", onclick: () => {
    sorted = { by: i, up: sorted.by === i ? !sorted.up : !down };
    page = 0;
    list();
  } }, name))));
  for (const arm of arms) $("by-arm").append(make("option", { value: arm }, arm));
  const list = () => {
    const text = $("find").value.trim().toLowerCase(), arm = $("by-arm").value, gate = $("by-gate").value;
    rows = all.filter((c) => (!arm || from(c) === arm) && (gate === "" || String(c.v ?? 3) === gate) &&
      (!text || `${c.id} ${c.n} ${c.i ?? ""} ${c.st ?? ""}`.toLowerCase().includes(text)));
    if (sorted.by != null) {
      const key = COLUMNS[sorted.by][1], sign = sorted.up ? 1 : -1;
      rows = rows.map((c) => [key(c), c]).sort((a, b) => (a[0] < b[0] ? -sign : a[0] > b[0] ? sign : a[1].index - b[1].index)).map((p) => p[1]);
    }
    [...head.cells].forEach((cell, i) => i === sorted.by ? cell.setAttribute("aria-sort", sorted.up ? "ascending" : "descending") : cell.removeAttribute("aria-sort"));
    const pages = Math.max(1, Math.ceil(rows.length / PAGE));
    page = Math.min(page, pages - 1);
    body.replaceChildren(...rows.slice(page * PAGE, page * PAGE + PAGE).map((c) => make("tr",
      { class: [c.id === data.winner ? "winner" : c.lib ? "library" : "", c.id === chosen ? "chosen" : ""].join(" ").trim() || null, "data-id": c.id },
      ...COLUMNS.map(([name, , shown, , more]) => shown
        ? make("td", name === "gates" ? { class: CLASSES[c.v] ?? (c.st === "screened" ? "quiet" : "failed"), title: (c.g ?? []).join("; ") || null } : { title: (more && more(c)) || null }, String(shown(c)))
        : make("td", { class: "name" }, make("button", { type: "button", class: "link", onclick: () => show(c.id, true) }, c.n || "(no name)"))))));
    $("count").textContent = `${rows.length.toLocaleString("en")} of ${all.length.toLocaleString("en")} candidates`;
    $("pager").hidden = pages === 1;
    $("where").textContent = `page ${page + 1} of ${pages}`;
    $("back").disabled = page === 0;
    $("next").disabled = page === pages - 1;
  };
  $("filters").hidden = false;
  for (const id of ["find", "by-arm", "by-gate"]) $(id).addEventListener("input", () => { page = 0; list(); });
  $("back").addEventListener("click", () => { page--; list(); });
  $("next").addEventListener("click", () => { page++; list(); });
  list();

  // ---- one program -----------------------------------------------------------------------------------------------
  const table = (names, cells) => make("div", { class: "wide", tabindex: "0", role: "region", "aria-label": names.join(", ") }, make("table", {},
    make("thead", {}, make("tr", {}, ...names.map((n) => make("th", { scope: "col" }, n)))),
    make("tbody", {}, ...cells.map((row) => make("tr", {}, ...row.map((v) => make("td", {}, v instanceof Node ? v : String(v))))))));
  const link = (c) => make("button", { type: "button", class: "link", onclick: () => show(c.id, true) }, `${c.id} ${c.n}`);
  const source = (c) => { const at = more.sources[c.id]; return at == null ? null : more.texts[at]; };
  const command = (c) => `vortex-search show ${data.run} ${c.id}`;
  const difference = (parent, child) => make("pre", { tabindex: "0" }, ...Diff.diffLines(parent, child).map((part) =>
    make("span", { class: part.added ? "add" : part.removed ? "cut" : "same" }, part.value.replace(/\n$/, "").split("\n").map((l) => (part.added ? "+ " : part.removed ? "- " : "  ") + l).join("\n"))));
  const heat = (words) => {
    const cells = [];
    words.forEach((word, layer) => { for (let h = 0; h * 2 < word.length; h++) cells.push({ layer, head: h, recall: parseInt(word.substr(2 * h, 2), 16) / 255 }); });
    return Plot.plot({ width: Math.min(640, 90 + 18 * (words[0].length / 2)), height: Math.max(120, 50 + 9 * words.length), marginLeft: 50,
      x: { label: "query head", axis: words[0].length > 60 ? null : "bottom" }, y: { label: "layer", tickFormat: (d) => (d % 4 ? "" : String(d)) },
      color: { scheme: "viridis", domain: [Math.min(0.5, d3.min(cells, (d) => d.recall)), 1], legend: true, label: "recall" },
      marks: [Plot.cell(cells, { x: "head", y: "layer", fill: "recall", title: (d) => `layer ${d.layer}, head ${d.head}: ${d.recall.toFixed(2)}`, tip: true })] });
  };
  const line = (values) => Plot.plot({ width: 480, height: 200, x: { label: "layer" }, y: { label: "recall", domain: [Math.min(0.5, d3.min(values)), 1] },
    marks: [Plot.lineY(values, { x: (d, i) => i, stroke: COLOURS[1], marker: true })] });
  const section = (name, ...inside) => make("div", {}, make("h3", {}, name), ...inside);

  const show = async (id, scroll) => {
    const c = byId.get(id);
    if (!c) return;
    if (id !== data.opens && !whole) [more, whole] = [await unpack("pages"), true];
    more ??= await unpack("opening");
    chosen = id;
    for (const row of body.rows) row.classList.toggle("chosen", row.dataset.id === id);
    const p = more.pages[id], text = source(c), box = $("one"), left = [], right = [];
    const facts = [["from", `${from(c)}${p ? ` by ${p.by}` : ""}`], ["gates", gates(c) + (c.g ? `: ${c.g.join("; ")}` : "")],
      [data.accuracy, triple(c.q)], [data.speed, c.s ? `${triple(c.s)} (${data.how})` : "-"]];
    if (c.i) facts.unshift(["idea", c.i]);
    if (c.err) facts.push([c.err[0], c.err[1]]);
    if (p) facts.push(["knobs", Object.entries(p.knobs).map(([k, v]) => `${k}=${v}`).join(", ")], ["identity", `IR ${p.ir}, with knobs ${p.key}`]);
    const parents = c.p.map((i) => all[i]);
    left.push(make("dl", {}, ...facts.flatMap(([k, v]) => [make("dt", {}, k), make("dd", {}, v)])));
    if (parents.length) left.push(make("p", {}, "Parents: ", ...parents.flatMap((x, i) => (i ? [", ", link(x)] : [link(x)]))));
    if (children[c.index].length) left.push(make("p", {}, "Children: ", ...children[c.index].slice(0, 12).flatMap((i, n) => (n ? [", ", link(all[i])] : [link(all[i])])),
      children[c.index].length > 12 ? `, and ${children[c.index].length - 12} more` : ""));
    if (p?.says) left.push(section("In words", make("p", {}, p.says.join(" "))));
    if (p?.formula) left.push(section("Formula", ...p.formula.map(([stage, plain, math]) => make("div", {}, make("span", { class: "quiet" }, `${stage}: `), trusted(math, plain)))));
    left.push(section("Source", text == null ? make("p", {}, "Not in this file, for its size: ", make("code", {}, command(c))) : make("pre", { tabindex: "0" }, text)));
    if (p?.simple) left.push(make("details", {}, make("summary", {}, "Simplified, as the canonical program writes it"), make("pre", { tabindex: "0" }, p.simple)));
    if (p?.kernels?.text) left.push(make("details", { class: "kernels" }, make("summary", {}, `Generated kernels (Triton, ${p.kernels.text.split("\n").length} lines)`),
      make("p", { class: "quiet" }, `For ${p.kernels.model}, pages of ${p.kernels.page_size} tokens; SHA-256 ${p.kernels.sha256}, the one an export lists.`), make("pre", { tabindex: "0" }, p.kernels.text)));
    else if (p?.kernels?.why) left.push(make("p", { class: "quiet" }, `No generated kernels here: ${p.kernels.why}.`));
    for (const parent of parents) {
      const before = source(parent);
      if (before != null && text != null) left.push(make("details", { class: "diff", open: parents.length === 1 }, make("summary", {}, `Difference to ${parent.id} ${parent.n}`), difference(before, text)));
    }
    if (p?.tasks?.length) right.push(section("By task", table(["task", "accuracy", "dense", "difference", "items"],
      p.tasks.map((t) => [t.task + (c.w?.task === t.task ? " (worst)" : ""), number(t.accuracy), number(t.dense), number(t.accuracy - t.dense), t.n]))));
    if (p?.heads) right.push(section("Recall by layer and head", quiet(heat(p.heads))));
    else if (p?.layers) right.push(section("Recall by layer", quiet(line(p.layers))));
    if (p?.points) right.push(section("Step latency", table(["context", "batch", "P50 ms", "P95 ms", "dense P50 ms", "density", "of the roofline"],
      Object.entries(p.points).map(([n, r]) => [n, r.batch, number(r.step_ms_p50), number(r.step_ms_p95), number(r.dense_ms_p50), number(r.density), r.roofline_share == null ? "-" : (100 * r.roofline_share).toFixed(0) + "%"]))));
    if (p?.launches?.length) right.push(section("Launches of a sparse layer (modelled: H200, 32 x 32,768 tokens)",
      quiet(Plot.plot({ width: 480, height: 40 + 26 * p.launches.length, marginLeft: 80, x: { label: "roofline, us →" }, y: { label: null, domain: p.launches.map((l) => l.name) }, marks: [Plot.barX(p.launches, { x: "us", y: "name", fill: COLOURS[1], title: (l) => l.does, tip: true })] })),
      table(["launch", "does", "MiB", "MFLOP", "us"], p.launches.map((l) => [l.name, l.does, (l.bytes / 2 ** 20).toFixed(2), (l.flops / 1e6).toFixed(1), l.us.toFixed(2)]))));
    if (p?.pays?.speedups) right.push(section(`Where it pays (modelled: ${p.pays.gpu.toUpperCase()}, whole step)`, make("p", { class: "quiet" }, "Times dense, by batch and context; below 1 dense is faster; - where the batch does not fit."),
      table(["batch", ...p.pays.contexts.map((n) => n.toLocaleString("en"))], p.pays.batches.map((b, i) => [b, ...p.pays.speedups[i].map((v) => v == null ? "-" : make("span", { class: v < 1 ? "failed" : "proven" }, v.toFixed(2)))]))));
    if (p?.crossover?.words) right.push(section(`Faster than dense from (${p.crossover.how})`, make("p", { class: "quiet" }, p.crossover.words)));
    if (p?.stages) right.push(make("details", {}, make("summary", {}, "All measurements"), ...Object.entries(p.stages).flatMap(([purpose, found]) =>
      [table(["items", "stage", "seconds", "metric", "value and interval", "how"], found.flatMap(([stage, seconds, passed, metrics]) =>
        (Object.entries(metrics).length ? Object.entries(metrics) : [[passed ? "passed" : "stopped", []]]).map(([name, m]) =>
          [purpose, stage, seconds, name, m.length ? triple(m.slice(0, -2)) + ` ${m.at(-2)}` : "", m.at(-1) ?? ""])))])));
    if (!p) right.push(make("p", { class: "quiet" }, "Its whole page is not in this file, for its size: ", make("code", {}, command(c))));
    if (p?.why) right.push(make("p", { class: "failed" }, `Its program cannot be read by this version: ${p.why}`));
    box.replaceChildren(make("h3", {}, `${c.id} ${c.n}`), ...(p?.picture ? [section("Data flow", trusted(p.picture, "data flow picture"))] : []), make("div", { class: "cols" }, make("div", {}, ...left), make("div", {}, ...right)));
    crossed();
    if (scroll) { history.replaceState(null, "", `#${id}`); $("program").scrollIntoView(); }
  };

  // ---- progress and crossover ------------------------------------------------------------------------------------
  const steps = plotted("plot-progress", (width) => {
    const axis = Number($("axis").value);
    const points = Object.entries(data.progress).flatMap(([arm, list]) => list.map((p) => ({ arm, x: p[axis], y: p[3] })));
    if (!points.length) return null;
    return Plot.plot({ width, height: 300, marginLeft: 56, grid: true, x: { label: $("axis").selectedOptions[0].text + " →" }, y: { label: "↑ hypervolume above dense" },
      color: { legend: true, domain: Object.keys(data.progress), range: Object.keys(data.progress).map((a, i) => COLOURS[1 + (i % 6)]) },
      marks: [Plot.line(points, { x: "x", y: "y", stroke: "arm", curve: "step-after" }), points.length > 300 ? null : Plot.dot(points, { x: "x", y: "y", fill: "arm", r: 2.5 }),
        Plot.tip(points, Plot.pointer({ x: "x", y: "y", stroke: "arm", fill: "var(--paper)" }))] });
  });
  $("axis").addEventListener("input", steps);
  const crossed = plotted("plot-crossover", (width) => {
    const over = (id) => more?.pages[id]?.over ?? data.over[id] ?? [];
    const shown = [...new Set([chosen, data.winner, ...ranked.filter((c) => c.lib).map((c) => c.id)])].filter((id) => over(id).length).slice(0, 6);
    const points = shown.flatMap((id) => over(id).map(([n, v, a, b]) => ({ name: `${id} ${byId.get(id).n}`.slice(0, 40), n, v, a, b })));
    if (!points.length) return null;
    return Plot.plot({ width, height: 280, marginLeft: 56, grid: true, x: { type: "log", label: "context, tokens →", tickFormat: "~s" }, y: { label: "↑ times dense" }, color: { legend: true },
      marks: [Plot.ruleY([1], { stroke: "currentColor" }), Plot.ruleX(points, { x: "n", y1: "a", y2: "b", stroke: "name" }), Plot.line(points, { x: "n", y: "v", stroke: "name" }), Plot.dot(points, { x: "n", y: "v", fill: "name", tip: true })] });
  }, "No speed was measured by context here; a program's page has the modelled map.");

  // ---- lineage ---------------------------------------------------------------------------------------------------
  const FEW = 40;
  const below = (indices) => {
    const best = indices.slice().sort((a, b) => a - b); // the list is in ranking order
    const items = best.slice(0, FEW).map(branch);
    if (best.length > FEW) {
      const rest = make("li", {}, make("button", { type: "button", class: "link", onclick: () => rest.replaceWith(...best.slice(FEW).map(branch)) }, `${best.length - FEW} more`));
      items.push(rest);
    }
    return make("ul", {}, ...items);
  };
  const branch = (index) => {
    const c = all[index], kids = children[index];
    const words = [link(c), make("span", { class: "quiet" }, ` ${c.s ? `x${number(c.s[0])}, ${number(c.q[0])}` : c.st ?? ""}${c.p.length > 1 ? `, also from ${c.p.slice(1).map((i) => all[i].id).join(", ")}` : ""}`)];
    if (!kids.length) return make("li", {}, ...words);
    const node = make("details", { "data-id": c.id }, make("summary", {}, `${kids.length} made from ${c.id}`));
    node.addEventListener("toggle", () => node.open && !node.querySelector("ul") && node.append(below(kids)));
    return make("li", {}, ...words, node);
  };
  $("tree").append(below(all.filter((c) => !c.p.length).map((c) => c.index)));
  const open = (id) => {
    const way = [];
    for (let c = byId.get(id); c?.p.length; c = all[c.p[0]]) way.unshift(all[c.p[0]].id);
    for (const step of way) {
      const node = [...$("tree").querySelectorAll("details")].find((d) => d.dataset.id === step);
      if (!node) break;
      if (!node.querySelector("ul")) node.append(below(children[byId.get(step).index]));
      node.open = true;
    }
  };

  // ---- begin -----------------------------------------------------------------------------------------------------
  document.body.dataset.ready = Math.round(performance.now());
  const first = location.hash.slice(1);
  const begin = byId.has(first) ? first : data.opens;
  if (begin) { await show(begin, byId.has(first)); open(begin); }
  document.body.dataset.whole = Math.round(performance.now());
  if (document.body.dataset.live != null) {
    const ask = async () => {
      try {
        const now = await (await fetch("seq")).json();
        if (String(now.seq) !== document.body.dataset.live) {
          if (scrollY < 200 && document.activeElement === document.body) return location.reload(); // nobody reads further down
          if (!$("news")) document.querySelector("nav").prepend(make("button", { id: "news", type: "button", onclick: () => location.reload() }, "New results: show"), " ");
        }
      } catch { /* the server is gone: the page stays as it is */ }
      setTimeout(ask, 3000);
    };
    setTimeout(ask, 3000);
  }
})();
