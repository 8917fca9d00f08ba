"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const root = document.documentElement;
  const drawn = new Set();
  let zooming = false;

  function alpha(hex, strength) {
    const value = parseInt(hex.slice(1), 16);
    return `rgba(${value >> 16}, ${(value >> 8) & 255}, ${value & 255}, ${strength})`;
  }

  // Viridis without the end that is lost on the paper: what is fit stands out from it.
  const viridis = ["#fde725", "#dfe318", "#bddf26", "#9bd93c", "#7ad151", "#5ec962", "#44bf70", "#2fb47c", "#22a884", "#1e9c89", "#21918c", "#25848e", "#2a788e", "#306a8e", "#365c8d", "#3b528b", "#414487", "#463480", "#482475", "#440154"];
  const fit = (number, dark) => dark ? viridis[14 - number] : viridis[Math.min(4 + Math.round(number * 15 / 13), 19)];

  // "@run0-other" and the like become colours of the theme in force.
  function colours() {
    const style = getComputedStyle(root);
    const of = (name) => style.getPropertyValue(`--${name}`).trim();
    const strengths = { other: 0.55, gone: 0.3, band: 0.26 };
    const dark = !root.classList.contains("print") && matchMedia("(prefers-color-scheme: dark)").matches;
    return (name) => {
      if (name.startsWith("@fit")) return fit(Number(name.slice(4)), dark);
      const [base, kind] = name.slice(1).split("-");
      return kind ? alpha(of(base), strengths[kind]) : of(base);
    };
  }

  function painted(value, colour) {
    if (typeof value === "string") return value.startsWith("@") ? colour(value) : value;
    if (Array.isArray(value)) return value.some((part) => typeof part === "string" || typeof part === "object") ? value.map((part) => painted(part, colour)) : value;
    if (value && typeof value === "object") return Object.fromEntries(Object.entries(value).map(([name, part]) => [name, painted(part, colour)]));
    return value;
  }

  function layoutOf(figure, colour, width) {
    const narrow = width < 500;
    const axis = (own, more) => ({
      gridcolor: colour("@grid"), zerolinecolor: colour("@rule"), linecolor: colour("@muted"), tickcolor: colour("@muted"),
      tickfont: { size: narrow ? 10 : 11 }, automargin: false, ...more, ...own,
      title: { font: { size: 11, color: colour("@soft") }, standoff: 6, ...own.title },
    });
    return {
      ...figure.layout,
      width, height: figure.height, autosize: false,
      margin: { l: narrow ? 60 : 66, r: narrow ? 10 : 18, t: figure.top, b: 40 },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("@ink") },
      hovermode: "closest", dragmode: "zoom",
      hoverlabel: { bgcolor: colour("@paper"), bordercolor: colour("@muted"), font: { color: colour("@ink"), size: 12 }, align: "left" },
      legend: { orientation: "h", x: 0, y: 1, yanchor: "bottom", xanchor: "left", font: { size: 11, color: colour("@soft") }, bgcolor: "rgba(0,0,0,0)", itemclick: "toggle" },
      xaxis: axis(figure.layout.xaxis, { showline: true, ticks: "outside", ticklen: 4, zeroline: false, separatethousands: true, exponentformat: "none", nticks: narrow ? 5 : 10, range: extent() }),
      yaxis: axis(figure.layout.yaxis, { zeroline: true, nticks: 6, fixedrange: narrow }),
    };
  }

  // All charts share one horizontal axis, so that what happens at one time lies in one line.
  const extents = (() => {
    let low = Infinity, high = -Infinity;
    for (const { data } of Object.values(figures)) for (const trace of data) for (const x of trace.x) {
      if (x !== null) { low = Math.min(low, x); high = Math.max(high, x); }
    }
    return low <= high ? [low, high] : [0, 1];
  })();
  function extent() {
    const room = Math.max((extents[1] - extents[0]) * 0.02, 0.5);
    return [extents[0] - room, extents[1] + room];
  }

  function draw(place, width) {
    const figure = figures[place.id], colour = colours();
    const given = width || place.clientWidth;
    if (!given) return Promise.resolve();
    const data = painted(figure.data, colour);
    // A colour bar beside the legend needs room that a phone has not.
    if (given < 500) for (const trace of data) if (trace.marker && trace.marker.showscale) trace.marker.showscale = false;
    return Plotly.react(place, data, layoutOf(figure, colour, given), {
      displaylogo: false, displayModeBar: false, doubleClick: "reset", responsive: false,
    }).then(() => {
      if (drawn.has(place.id)) return;
      drawn.add(place.id);
      place.on("plotly_relayout", (change) => follow(place, change));
    });
  }

  function follow(source, change) {
    if (zooming) return;
    const range = "xaxis.range[0]" in change ? [change["xaxis.range[0]"], change["xaxis.range[1]"]] : change["xaxis.range"];
    if (!range && !change["xaxis.autorange"]) return;
    zooming = true;
    const others = places().filter((place) => place !== source && drawn.has(place.id));
    Promise.all(others.map((place) => Plotly.relayout(place, { "xaxis.range": range || extent() }))).finally(() => { zooming = false; });
  }

  const places = () => [...document.querySelectorAll(".plot")];
  const redraw = (width) => { zooming = true; return Promise.all(places().map((place) => draw(place, width))).finally(() => { zooming = false; }); };

  document.querySelectorAll("details").forEach((part) => part.addEventListener("toggle", () => {
    if (part.open) part.querySelectorAll(".plot").forEach((place) => draw(place));
  }));
  let waiting = 0, before = window.innerWidth;
  window.addEventListener("resize", () => {
    if (window.innerWidth === before) return;
    before = window.innerWidth;
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(() => redraw());
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraw());

  // A4 between its margins is 680 CSS pixels wide; everything that is folded away is printed too, but for long lists.
  window.addEventListener("beforeprint", () => { root.classList.add("print"); redraw(680); });
  window.addEventListener("afterprint", () => { root.classList.remove("print"); redraw(); });

  redraw().then(() => { root.dataset.drawn = String(drawn.size); });
})();
