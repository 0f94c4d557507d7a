// Charts by uPlot. A figure names its data (data-source) and its kind (data-chart); colours come from the style sheet.
"use strict";

(() => {
  const HEIGHT = 260;
  const zone = document.documentElement.dataset.zone || "UTC";
  const language = document.documentElement.lang || "en";
  // Step in seconds, format, then what is added where the year, the day, … begins; as uPlot takes them.
  const DATES = [
    [86400 * 365, "{YYYY}", null, null, null, null, null, null, 1],
    [86400, "{MM}-{DD}", "\n{YYYY}", null, null, null, null, null, 1],
    [60, "{HH}:{mm}", "\n{YYYY}-{MM}-{DD}", null, "\n{MM}-{DD}", null, null, null, 1],
    [1, "{HH}:{mm}:{ss}", "\n{YYYY}-{MM}-{DD}", null, "\n{MM}-{DD}", null, null, null, 1],
  ];

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const number = (value, digits = 4) =>
    value === null || value === undefined || !isFinite(value)
      ? ""
      : value.toLocaleString(language, { maximumSignificantDigits: digits });
  const percent = (value) => (value === null || value === undefined ? "" : `${number(100 * value, 3)} %`);
  const moment = (seconds) =>
    new Date(1000 * seconds).toLocaleString("sv", { timeZone: zone, dateStyle: "short", timeStyle: "short" }); // 2026-11-27 06:05

  function axes(format) {
    const grid = { stroke: colour("chart-grid"), width: 1 };
    const common = { stroke: colour("chart-text"), grid, ticks: grid, font: "12px system-ui, sans-serif" };
    return [
      { ...common, space: 90, values: DATES },
      { ...common, size: 64, values: (_, ticks) => ticks.map((tick) => format(tick)) },
    ];
  }

  function options(figure, series, format, extra = {}) {
    return {
      width: figure.querySelector(".plot").clientWidth,
      height: Number(figure.dataset.height) || HEIGHT,
      tzDate: (seconds) => uPlot.tzDate(new Date(1000 * seconds), zone),
      cursor: { points: { size: 8 } },
      legend: { live: true },
      series: [{ label: figure.dataset.time, value: (_, v) => (v === null ? "" : moment(v)) }, ...series],
      axes: axes(format),
      ...extra,
    };
  }

  // A value that holds from one time to the next, at given times.
  function held(times, steps, field, until) {
    let next = 0;
    let current = null;
    return times.map((time) => {
      while (next < steps.length && steps[next].time <= time) current = steps[next++][field];
      return time > until ? null : current;
    });
  }

  // Columns on one ascending axis of times: values of each table at its times, null elsewhere.
  function joined(...tables) {
    return uPlot.join(tables);
  }

  // Records that became durable together have one time: each gets a place of its own beside the one before.
  function apart(times) {
    let last = -Infinity;
    return times.map((time) => (last = Math.max(time, last + 1e-3)));
  }

  const line = (label, name, format, more = {}) => ({
    label, stroke: colour(name), width: 2, value: (_, v) => format(v), points: { show: false }, ...more,
  });
  const dots = (label, name, format, more = {}) => ({
    label, stroke: colour(name), value: (_, v) => format(v), paths: () => null,
    points: { show: true, size: 7, fill: colour(name), stroke: colour(name), ...more },
  });

  // Vertical lines with a word, such as a drift or another bundle.
  function marking(marks, words) {
    return (u) => {
      const { ctx, bbox } = u;
      const ratio = devicePixelRatio || 1;
      ctx.save();
      ctx.font = `${12 * ratio}px system-ui, sans-serif`;
      ctx.textAlign = "left";
      ctx.textBaseline = "alphabetic";
      let free = -Infinity;
      for (const mark of marks) {
        const x = u.valToPos(mark.time, "x", true);
        if (x < bbox.left || x > bbox.left + bbox.width) continue;
        ctx.strokeStyle = ctx.fillStyle = colour(mark.kind === "drift" ? "chart-drift" : "chart-mark");
        ctx.lineWidth = 2 * ratio;
        ctx.setLineDash(mark.kind === "drift" ? [] : [4 * ratio, 4 * ratio]);
        ctx.beginPath();
        ctx.moveTo(x, bbox.top);
        ctx.lineTo(x, bbox.top + bbox.height);
        ctx.stroke();
        const text = `${words[mark.kind]} ${mark.text}`;
        const width = ctx.measureText(text).width;
        const left = Math.max(bbox.left, Math.min(x + 5 * ratio, bbox.left + bbox.width - width));
        if (left > free) {
          ctx.fillText(text, left, bbox.top + 14 * ratio);
          free = left + width + 8 * ratio;
        }
      }
      ctx.restore();
    };
  }

  const kinds = {
    "p-chart"(figure, all) {
      const p = all.p_chart;
      const words = figure.dataset;
      const outside = p.share.map((value, i) => (p.outside[i] ? value : null));
      const stepped = uPlot.paths.stepped({ align: 1 });
      const limit = { width: 1.5, dash: [6, 4], paths: stepped, spanGaps: true };
      const series = [
        line(words.share, "chart-line", percent, { spanGaps: true, points: { show: true, size: 6, fill: colour("chart-line") } }),
        line(words.high, "chart-limit", percent, limit),
        line(words.low, "chart-limit", percent, limit),
        line(words.mean, "chart-mean", percent, { width: 1 }),
        dots(words.outside, "reject", percent, { size: 11 }),
      ];
      const mean = p.times.map(() => p.mean);
      // A period of few parts has limits so wide that they would flatten all others: these may leave the chart.
      const limits = p.high.filter((value) => value !== null).sort((a, b) => a - b);
      const highest = Math.max(...p.share, 1.3 * (limits[limits.length >> 1] || 0), 0.01);
      const range = [0, Math.min(1.15 * highest, 1.02)];
      return [options(figure, series, percent, { scales: { y: { range } } }), [p.times, p.share, p.high, p.low, mean, outside]];
    },

    scores(figure, all) {
      const words = figure.dataset;
      const { dots: d, scores: s } = all;
      const pick = (verdict) => d.scores.map((value, i) => (d.verdicts[i] === verdict ? value : null));
      const others = d.scores.map((value, i) => (d.verdicts[i] !== "REVIEW" && d.verdicts[i] !== "REJECT" ? value : null));
      const steps = [all.since, ...all.thresholds.map((each) => each.time), all.until].filter((t) => t >= all.since);
      const edges = [...new Set(steps)].sort((a, b) => a - b);
      const many = s.times.length > 0;
      const data = joined(
        ...(many ? [[s.times, s.high, s.low, s.mean]] : []),
        [apart(d.times), others, pick("REVIEW"), pick("REJECT")],
        [edges, held(edges, all.thresholds, "review", all.until), held(edges, all.thresholds, "reject", all.until)],
      );
      const limit = { width: 2, paths: uPlot.paths.stepped({ align: 1 }), spanGaps: true };
      const band = { width: 1, points: { show: true, size: 3, fill: colour("chart-band") } };
      const ranges = [
        line(words.high, "chart-band", number, band),
        line(words.low, "chart-band", number, band),
        line(words.mean, "chart-line", number, { points: { show: true, size: 3, fill: colour("chart-line") } }),
      ];
      const series = [
        ...(many ? ranges : []),
        dots(words.passed, "chart-line", number, { size: 4 }),
        dots(words.doubtful, "review", number),
        dots(words.rejected, "reject", number),
        line(words.review, "review", number, { ...limit, dash: [8, 4] }),
        line(words.reject, "reject", number, limit),
      ];
      const extra = {
        bands: many ? [{ series: [1, 2], fill: colour("chart-fill") }] : [],
        scales: { x: { range: [all.since, all.until] } },
        hooks: { draw: [marking(all.marks, { drift: words.drift, activate: words.activate, "roll back": words.back })] },
      };
      return [options(figure, series, number, extra), data];
    },

    margins(figure, all) {
      const names = Object.keys(all.margins).sort();
      const data = joined(...names.map((name) => [all.margins[name].times, all.margins[name].margins]));
      const series = names.map((name, i) => line(name, `chart-${1 + (i % 6)}`, number, {
        spanGaps: true, dash: i < 6 ? undefined : [6, 3], points: { show: true, size: 7, fill: colour(`chart-${1 + (i % 6)}`) },
      }));
      const range = (_, low, high) => [Math.min(low, 0) - 0.05 * (high - low), Math.max(high, 0) + 0.05 * (high - low)];
      const zero = (u) => {
        const y = u.valToPos(0, "y", true);
        u.ctx.save();
        u.ctx.strokeStyle = colour("reject");
        u.ctx.lineWidth = 2;
        u.ctx.beginPath();
        u.ctx.moveTo(u.bbox.left, y);
        u.ctx.lineTo(u.bbox.left + u.bbox.width, y);
        u.ctx.stroke();
        u.ctx.restore();
      };
      return [options(figure, series, number, { scales: { y: { range } }, hooks: { draw: [zero] } }), data];
    },

    measure(figure, all) {
      const m = all[figure.dataset.measure];
      const words = figure.dataset;
      if (!m) return [null, words.empty];
      const flat = (value) => m.times.map(() => value);
      const limit = { width: 1.5, dash: [6, 4] };
      const series = [
        dots(words.value, "chart-dim", number, { size: 3 }),
        line(words.mean, "chart-line", number),
        line(words.high, "chart-limit", number, limit),
        line(words.low, "chart-limit", number, limit),
      ];
      // By part, not by time: a break of the shift would hide what the parts say.
      const ago = m.times.map((_, i) => i + 1 - m.times.length);
      const opts = options(figure, series, number, { scales: { x: { time: false } } });
      opts.series[0].value = (u, v, _, i) => (v === null || i === null ? "" : moment(m.times[i]));
      opts.axes[0].values = (_, ticks) => ticks.map((tick) => number(tick));
      return [opts, [ago, m.values, m.means, flat(m.high), flat(m.low)]];
    },
  };

  const waiting = new Map();
  const load = (source) => {
    if (!waiting.has(source)) {
      waiting.set(source, fetch(source, { credentials: "same-origin" }).then((answer) => {
        if (!answer.ok) throw new Error(answer.statusText);
        return answer.json();
      }));
    }
    return waiting.get(source);
  };

  async function draw(figure) {
    const plot = figure.querySelector(".plot");
    try {
      const [opts, data] = kinds[figure.dataset.chart](figure, await load(figure.dataset.source));
      plot.replaceChildren();
      if (!opts) {
        plot.textContent = data; // why there is no chart
        return;
      }
      const chart = new uPlot(opts, data, plot);
      figure.chart = chart;
      if (figure.dataset.chart === "scores") {
        plot.addEventListener("dblclick", () => chart.setScale("x", { min: opts.scales.x.range[0], max: opts.scales.x.range[1] }));
      }
    } catch (error) {
      plot.textContent = `${figure.dataset.failed} ${error.message}`;
    }
  }

  const sized = new ResizeObserver((entries) => {
    for (const entry of entries) {
      const chart = entry.target.closest("figure").chart;
      if (chart && entry.contentRect.width > 0) chart.setSize({ width: entry.contentRect.width, height: chart.height });
    }
  });

  function begin() {
    for (const figure of document.querySelectorAll("figure[data-chart]")) {
      if (figure.chart || figure.dataset.begun) continue;
      figure.dataset.begun = "yes";
      draw(figure);
      sized.observe(figure.querySelector(".plot"));
    }
  }

  // Another theme has other colours: draw anew.
  const anew = () => {
    for (const figure of document.querySelectorAll("figure[data-chart]")) if (figure.chart) draw(figure);
  };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", anew);
  new MutationObserver(anew).observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });
  // After the first paint, people read the page while charts and what else takes long are fetched.
  const painted = () => document.body.dispatchEvent(new Event("painted"));
  document.addEventListener("DOMContentLoaded", () => requestAnimationFrame(() => setTimeout(() => { begin(); painted(); })));
  document.addEventListener("htmx:load", begin);
})();
