"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const spoken = document.getElementById("spoken");
  const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
  const STROKES = ["", "6 3", "2 3", "6 3 2 3", "9 4", "9 4 2 4"];
  const DEPTHS = [[68, 1, 84], [65, 68, 135], [42, 120, 142], [34, 168, 132], [122, 209, 81], [253, 231, 37]];
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const touch = matchMedia("(pointer: coarse)");
  const state = { x: "step", smooth: false, log: false };
  const hidden = {};
  const held = {};

  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const clear = (colour, alpha) => {
    const n = parseInt(colour.slice(1), 16);
    return `rgba(${n >> 16}, ${(n >> 8) & 255}, ${n & 255}, ${alpha})`;
  };
  const plain = (text) => new DOMParser().parseFromString(text, "text/html").documentElement.textContent;
  const written = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const ofSlot = (slot) => css(`--c${slot % 8}`);
  // from first layer to last along viridis, without its end that the paper would swallow
  const ofDepth = (depth) => {
    const at = (dark.matches ? 0.42 + 0.58 * depth : 0.82 * depth) * (DEPTHS.length - 1);
    const i = Math.min(DEPTHS.length - 2, Math.floor(at));
    const mixed = DEPTHS[i].map((v, k) => Math.round(v + (at - i) * (DEPTHS[i + 1][k] - v)));
    return `rgb(${mixed.join(", ")})`;
  };

  const smoothed = (values) => {
    const half = Math.max(1, Math.round(values.length / 60));
    return values.map((_, i) => {
      const near = values.slice(Math.max(0, i - half), i + half + 1);
      return near.reduce((a, b) => a + b, 0) / near.length;
    });
  };

  function trace(name, from) {
    const { meta } = from;
    const made = { ...from, visible: !(hidden[name] && hidden[name].has(meta.slot)) };
    if (meta.role === "map") {
      const every = innerWidth < 640 ? 2 : 1; // room for every other label on a phone
      made.colorbar = {
        ...from.colorbar,
        tickvals: from.colorbar.tickvals.filter((_, i) => i % every === 0),
        ticktext: from.colorbar.ticktext.filter((_, i) => i % every === 0),
        tickfont: { size: 11, color: css("--soft") },
      };
      return made;
    }
    const colour = meta.role === "layer" ? ofDepth(meta.depth) : ofSlot(meta.slot);
    if (name === "cost") made.x = state.x === "seconds" ? meta.total : meta.step;
    else if (meta.seconds) made.x = meta[state.x];
    if (name === "loss" && state.smooth) made.y = smoothed(from.y);
    if (meta.role === "band") made.fillcolor = clear(colour, dark.matches ? 0.24 : 0.17);
    else if (meta.role === "run") made.marker = { color: meta.alone ? colour : clear(colour, 0.5), size: meta.alone ? 11 : 8, symbol: meta.slot % 8 };
    else if (meta.role === "mean") {
      made.marker = { color: colour, size: 13, symbol: meta.slot % 8, line: { color: css("--card"), width: 1.5 } };
      made.error_y = { ...from.error_y, color: colour, width: 5 };
    } else {
      const dash = DASHES[meta.slot % DASHES.length];
      made.line = { color: colour, width: 2.2, dash };
      // open symbols, and larger ones below, leave what coincides visible
      const open = { color: colour, size: Math.max(6, 12 - 2 * meta.slot), symbol: 100 + (meta.slot % 8), line: { width: 1.8, color: colour } };
      made.marker = from.mode === "markers" ? open : { color: colour, size: 5 };
    }
    return made;
  }

  function layout(name, from) {
    const axis = (own) => ({
      ...own,
      title: { ...own.title, standoff: 10, font: { size: 13, color: css("--soft") } },
      gridcolor: css("--grid"), linecolor: css("--rule"), zerolinecolor: css("--grid"),
      tickfont: { size: 12, color: css("--soft") }, automargin: true,
    });
    const made = {
      ...from,
      xaxis: axis(from.xaxis), yaxis: axis(from.yaxis),
      margin: { l: 54, r: 12, t: 10, b: 46 },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, color: css("--ink"), size: 13 },
      hoverlabel: { bgcolor: css("--hover"), bordercolor: css("--rule"), font: { color: css("--ink"), size: 13 }, namelength: 30 },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: css("--soft"), activecolor: css("--link") },
      dragmode: touch.matches ? false : "zoom",
    };
    if (name === "loss" || name === "accuracy") {
      made.xaxis.title = { ...made.xaxis.title, text: state.x === "step" ? "step" : "seconds in steps" };
      if (state.x === "seconds") made.hovermode = "closest";
    }
    if (name.startsWith("angle")) {
      const most = innerWidth < 640 ? 12 : 24;
      const names = figures[name].data[0].y;
      made.yaxis.tickvals = names;
      made.yaxis.ticktext = names.map((n) => {
        const text = plain(n).replace(/\.weight$/, "");
        return written(text.length > most ? `…${text.slice(1 - most)}` : text);
      });
    }
    if (name === "cost") made.xaxis.title = { ...made.xaxis.title, text: state.x === "step" ? "seconds per step" : "seconds in all steps" };
    if (name === "loss" && state.log) made.yaxis.type = "log";
    return made;
  }

  const settings = { responsive: true, displaylogo: false, modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]] };
  const chart = (name) => document.getElementById(name);

  function draw(name) {
    const own = figures[name];
    const div = chart(name);
    div.dataset.drawn = "yes";
    return Plotly.react(div, own.data.map((t) => trace(name, t)), layout(name, own.layout), { ...settings, displayModeBar: touch.matches ? false : "hover" });
  }
  const redraw = (names) => names.filter((n) => chart(n) && chart(n).dataset.drawn).forEach(draw);

  function keys() {
    document.querySelectorAll(".key").forEach((span) => {
      const slot = Number(span.dataset.slot);
      const colour = span.dataset.depth === undefined ? ofSlot(slot) : ofDepth(Number(span.dataset.depth));
      const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
      svg.setAttribute("viewBox", "0 0 27 11");
      svg.setAttribute("aria-hidden", "true");
      const line = document.createElementNS(svg.namespaceURI, "path");
      for (const [k, v] of Object.entries({ d: "M0 5.5H27", stroke: colour, "stroke-width": 3, "stroke-dasharray": STROKES[slot % 6] })) line.setAttribute(k, v);
      svg.append(line);
      span.replaceChildren(svg);
    });
  }

  // Reading a chart by keyboard: a curve and a point of it are held, shown and said.
  function readable(name) {
    const own = figures[name];
    if (own.data[0].meta.role === "map") {
      const map = own.data[0];
      return map.y.map((layer, row) => ({
        curve: 0, label: plain(layer), x: map.x, y: map.customdata[row], unit: "°", at: (i) => ({ xval: i, yval: row }),
      }));
    }
    return own.data.map((t, curve) => ({ t, curve })).filter(({ t }) => t.meta.role !== "band")
      .map(({ t, curve }) => {
        const now = trace(name, t);
        return { curve, label: plain(t.name), x: now.x, y: now.y, text: t.text, unit: "", shown: now.visible, at: (i) => ({ pointNumber: i }) };
      }).filter((c) => c.shown);
  }

  function step(name, key) {
    const curves = readable(name);
    if (!curves.length) return;
    const now = held[name] || { c: 0, i: -1 };
    if (key === "ArrowRight") now.i += 1;
    if (key === "ArrowLeft") now.i -= 1;
    if (key === "ArrowUp") now.c += 1;
    if (key === "ArrowDown") now.c -= 1;
    now.c = (now.c + curves.length) % curves.length;
    const curve = curves[now.c];
    now.i = key === "Home" ? 0 : key === "End" ? curve.x.length - 1 : Math.max(0, Math.min(curve.x.length - 1, now.i));
    held[name] = now;
    const x = curve.x[now.i], y = curve.y[now.i];
    const value = y === null ? "no value" : `${Number(y).toPrecision(4)}${curve.unit}${(curve.text || [])[now.i] || ""}`;
    spoken.textContent = `${curve.label}, ${typeof x === "number" ? Number(x.toPrecision(4)) : x}: ${value}`;
    Plotly.Fx.hover(chart(name), [{ curveNumber: curve.curve, ...curve.at(now.i) }]);
  }

  function tabulate(details) {
    const name = details.dataset.for;
    const place = details.querySelector(".scroll");
    const table = document.createElement("table");
    const line = (kind, cells) => {
      const tr = document.createElement("tr");
      cells.forEach((text) => {
        const cell = document.createElement(kind);
        cell.textContent = text;
        if (kind === "th") cell.scope = "col";
        tr.append(cell);
      });
      table.append(tr);
    };
    const x = figures[name].data[0].meta.role === "map" ? "step" : layout(name, figures[name].layout).xaxis.title.text;
    line("th", ["", x, "value", ""]);
    readable(name).forEach((c) => c.x.forEach((at, i) => {
      if (c.y[i] !== null) line("td", [c.label, at, `${Number(c.y[i]).toPrecision(5)}${c.unit}`, plain((c.text || [])[i] || "")]);
    }));
    place.replaceChildren(table);
  }

  keys();
  const names = Object.keys(figures).filter(chart);
  const seen = new IntersectionObserver((entries) => entries.forEach((entry) => {
    if (!entry.isIntersecting) return;
    seen.unobserve(entry.target);
    draw(entry.target.id);
  }), { rootMargin: "400px" });
  names.forEach((name) => {
    const div = chart(name);
    seen.observe(div);
    div.addEventListener("keydown", (event) => {
      if (event.key === "Escape") Plotly.Fx.unhover(div);
      if (!["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End"].includes(event.key)) return;
      event.preventDefault();
      step(name, event.key);
    });
    div.addEventListener("blur", () => div.dataset.drawn && Plotly.Fx.unhover(div));
  });
  addEventListener("beforeprint", () => names.forEach(draw));
  dark.addEventListener("change", () => { keys(); redraw(names); });

  const curves = ["loss", "accuracy", "cost"];
  const changed = () => {
    redraw(curves);
    document.querySelectorAll("details.data[open]").forEach(tabulate);
  };
  document.querySelectorAll('input[name="x"]').forEach((input) => {
    if (input.checked) state.x = input.value; // a reloaded page may keep what was chosen
    input.addEventListener("change", () => { state.x = input.value; changed(); });
  });
  ["smooth", "log"].forEach((key) => {
    const box = document.getElementById(key);
    state[key] = box.checked;
    box.addEventListener("change", () => { state[key] = box.checked; changed(); });
  });
  document.querySelectorAll(".legend button").forEach((button) => button.addEventListener("click", () => {
    const on = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(on));
    const targets = button.parentElement.dataset.for.split(" ").filter(chart);
    targets.forEach((name) => {
      hidden[name] = hidden[name] || new Set();
      hidden[name][on ? "delete" : "add"](Number(button.dataset.slot));
    });
    redraw(targets);
    changed();
  }));
  document.querySelectorAll("details.data").forEach((one) => one.addEventListener("toggle", () => one.open && tabulate(one)));
  document.querySelectorAll("button.copy").forEach((button) => button.addEventListener("click", async () => {
    const code = button.parentElement.querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch { // a page opened from disk may not write to the clipboard: select the text instead
      getSelection().selectAllChildren(code);
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 1600);
  }));
})();
