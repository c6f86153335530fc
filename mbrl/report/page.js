// Tables that sort by a click on a head, and charts in the colours of the page. Nothing here asks the network.
(() => {
  "use strict";
  const data = JSON.parse(document.getElementById("report-data").textContent);
  const hidden = new Set();
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  const DASHES = ["solid", "dash", "dot", "dashdot"];

  // -- tables: numbers by data-order, highest first; words by the alphabet; what is missing stays last
  for (const table of document.querySelectorAll("table")) {
    const heads = [...table.tHead.rows[0].cells];
    const key = (row, column, numeric) => {
      const cell = row.cells[column];
      if (!numeric) return cell.textContent.trim() || null;
      return cell.dataset.order === undefined ? null : Number(cell.dataset.order);
    };
    heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
      const body = table.tBodies[0];
      const rows = [...body.rows];
      const numeric = rows.some((row) => row.cells[column].dataset.order !== undefined);
      const before = head.getAttribute("aria-sort");
      const descending = before === null ? numeric : before === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      rows.sort((one, two) => {
        const [a, b] = [key(one, column, numeric), key(two, column, numeric)];
        if (a === null || b === null) return (a === null) - (b === null);
        const order = numeric ? a - b : a.localeCompare(b, undefined, { numeric: true });
        return descending ? -order : order;
      });
      body.append(...rows);
    }));
  }

  // -- charts
  const isDark = () => prefersDark.matches && !printing;
  let printing = false;
  const colour = (method) => {
    const colours = isDark() ? data.colours.dark : data.colours.light;
    return colours[method % colours.length];
  };
  const faded = (hex) => `rgba(${[1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)).join(",")},0.16)`;
  const dash = (method) => DASHES[Math.floor(method / data.colours.light.length) % DASHES.length];

  const layout = (more) => {
    const [ink, grid, raised] = isDark() ? ["#c3c9cf", "#343a41", "#262b31"] : ["#3f474f", "#e3e7eb", "#ffffff"];
    const axis = { gridcolor: grid, zerolinecolor: grid, linecolor: grid, automargin: true, title: { standoff: 8 } };
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false,
      font: { family: "system-ui, sans-serif", size: 12, color: ink }, margin: { l: 50, r: 14, t: 12, b: 40 },
      hoverlabel: { bgcolor: raised, bordercolor: grid, font: { color: ink, family: "system-ui, sans-serif" }, namelength: -1, align: "left" },
      dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
      ...more,
      xaxis: { ...axis, ...more.xaxis }, yaxis: { ...axis, ...more.yaxis },
    };
  };
  const text = (words) => words.replace(/[&<>]/g, (mark) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;" })[mark]);

  // One band for each stretch of finite values: a polygon around a gap would cross itself.
  const bands = (x, low, high, method) => {
    const stretches = [[]];
    x.forEach((_, i) => {
      if (low[i] !== null && high[i] !== null) stretches.at(-1).push(i);
      else if (stretches.at(-1).length) stretches.push([]);
    });
    return stretches.filter((stretch) => stretch.length).map((stretch) => {
      const back = [...stretch].reverse();
      return {
        x: [...stretch, ...back].map((i) => x[i]), y: [...stretch.map((i) => high[i]), ...back.map((i) => low[i])],
        fill: "toself", mode: "lines", line: { width: 0 }, fillcolor: faded(colour(method)), hoverinfo: "skip",
        visible: !hidden.has(method),
      };
    });
  };
  const line = (x, y, method, more) => ({
    x, y, mode: x.length === 1 ? "markers" : "lines", name: text(data.methods[method]), visible: !hidden.has(method),
    line: { color: colour(method), width: 2.2, dash: dash(method) }, marker: { color: colour(method), size: 7 }, ...more,
  });

  const draw = {
    curve: (at) => {
      const task = data.curves[at.index];
      const traces = task.lines.filter((one) => one.seeds > 1)
        .flatMap((one) => bands(one.steps, one.low, one.high, one.method));
      for (const one of task.lines) {
        const digits = task.y === "raw return" ? ",.5~g" : ".1f";
        const range = one.seeds > 1 ? ` (%{customdata[0]:${digits}} to %{customdata[1]:${digits}})` : " (one seed)";
        traces.push(line(one.steps, one.mean, one.method, {
          customdata: one.low.map((low, i) => [low, one.high[i]]),
          hovertemplate: `%{fullData.name}: %{y:${digits}}${range}<extra></extra>`,
        }));
      }
      const behaviour = task.behaviour === null ? [] : [{
        type: "line", xref: "paper", x0: 0, x1: 1, y0: task.behaviour, y1: task.behaviour,
        line: { dash: "dash", width: 1.2, color: isDark() ? "#a0a9b2" : "#5b646e" },
      }];
      return [traces, layout({
        height: 300, hovermode: "x unified", shapes: behaviour,
        xaxis: { title: { text: task.x, standoff: 8 }, hoverformat: ",d", tickformat: "~s" },
        yaxis: { title: { text: task.y, standoff: 8 }, tickformat: ",~g" },
      })];
    },
    metric: (at) => {
      const found = data.aggregates[at.index];
      const names = [...found.methods].reverse();
      const traces = found.methods.map((name, i) => {
        const [value, low, high] = found.metrics[at.metric][i];
        const method = data.methods.indexOf(name);
        const interval = low === null ? "one seed: no interval" : `95 %: ${low.toFixed(1)} to ${high.toFixed(1)}`;
        return {
          x: [value], y: [names.indexOf(name)], mode: "markers", name: text(name), visible: !hidden.has(method),
          marker: { size: 10, color: colour(method) },
          error_x: low === null ? undefined : {
            type: "data", symmetric: false, array: [high - value], arrayminus: [value - low],
            color: colour(method), thickness: 2.5, width: 0,
          },
          hovertemplate: `${text(name)}<br>${at.metric} %{x:.1f}<br>${interval}<extra></extra>`,
        };
      });
      return [traces, layout({
        height: 70 + 26 * names.length, hovermode: "closest", margin: { l: 14, r: 14, t: 8, b: 30 },
        yaxis: { range: [-0.6, names.length - 0.4], showticklabels: false, showgrid: false, zeroline: false, fixedrange: true },
        xaxis: { zeroline: false, nticks: 5 },
      })];
    },
    profile: (at) => {
      const found = data.aggregates[at.index];
      const x = found.thresholds;
      const traces = [];
      found.methods.forEach((name, i) => {
        const [, low, high] = found.profiles[i];
        if (low[0] !== null) traces.push(...bands(x, low, high, data.methods.indexOf(name)));
      });
      found.methods.forEach((name, i) => traces.push(line(x, found.profiles[i][0], data.methods.indexOf(name), {
        hovertemplate: "%{fullData.name}: %{y:.0%}<extra></extra>",
      })));
      return [traces, layout({
        height: 320, hovermode: "x unified",
        xaxis: { title: { text: "score threshold", standoff: 8 }, hoverformat: ".1f" },
        yaxis: { title: { text: "share of runs above", standoff: 8 }, range: [-0.02, 1.04], tickformat: ".0%" },
      })];
    },
  };
  const charts = [...document.querySelectorAll(".chart")];
  const redraw = () => {
    for (const chart of charts) {
      const [traces, shape] = draw[chart.dataset.chart](chart.dataset);
      Plotly.react(chart, traces, shape, {
        responsive: true, displaylogo: false, displayModeBar: false, doubleClick: "reset",
      });
    }
  };

  const buttons = [];
  for (const legend of document.querySelectorAll(".legend")) {
    data.methods.forEach((name, method) => {
      const button = document.createElement("button");
      button.type = "button";
      button.innerHTML = `<i class="dot" style="background:var(--method-${method % data.colours.light.length})"></i>`;
      button.append(name);
      button.addEventListener("click", () => {
        hidden.has(method) ? hidden.delete(method) : hidden.add(method);
        buttons.forEach(([one, of]) => one.setAttribute("aria-pressed", String(!hidden.has(of))));
        redraw();
      });
      button.setAttribute("aria-pressed", "true");
      buttons.push([button, method]);
      legend.append(button);
    });
  }
  redraw();
  prefersDark.addEventListener("change", redraw);
  const folded = [...document.querySelectorAll("details")];
  if (folded.length <= 5) folded.forEach((one) => { one.open = true; });
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = folded.filter((one) => !one.open);
    closed.forEach((one) => { one.open = true; });
    printing = true;
    redraw();
  });
  addEventListener("afterprint", () => {
    closed.forEach((one) => { one.open = false; });
    printing = false;
    redraw();
  });
})();
