// The look, light and dark, in three widths: three columns, two with a row below, one.

// A live widget hides what stands still for where there is no kernel: its page, a figure's data.
const LIVE = `.jp-OutputArea:has(.jp-OutputArea-output:not([data-mime-type]) :is(.lgx,.js-plotly-plot))
[data-mime-type]:is([data-mime-type="text/html"]:has(.lgx-page),[data-mime-type="application/vnd.plotly.v1+json"]){display:none}`;

export const STYLE = `${LIVE}
.lgx-shell{container-type:inline-size;background:var(--bg,#fff);min-width:320px}
.lgx{--bg:#fff;--fg:#1c1e21;--muted:#5f6670;--line:#d9dce1;--soft:#f1f3f5;--pick:#ff2d87;--first:#0072b2;--second:#d55e00;
color:var(--fg);background:var(--bg);font:13px/18px system-ui,"Liberation Sans",sans-serif;font-variant-numeric:tabular-nums;
padding:0 16px 6px;max-width:1400px;margin:auto;text-align:left;position:relative}
.lgx.dark{--bg:#17191c;--fg:#e8eaed;--muted:#a3abb6;--line:#34383e;--soft:#23262b;--first:#56b4e9;--second:#e69f00;color-scheme:dark}
.lgx-shell:has(.dark){background:#17191c}
.lgx:focus{outline:none}
.lgx *{box-sizing:border-box}
.lgx h1{font-size:16px;line-height:24px;margin:0;font-weight:650}
.lgx .top h1{max-width:300px;overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.lgx h2{font-size:13px;line-height:24px;margin:0 auto 0 0;font-weight:650;white-space:nowrap}
.lgx p{margin:0;color:var(--muted);font-size:12px;line-height:16px}
.lgx b{color:var(--fg);font-weight:600}
.lgx canvas{display:block;outline:none;border-radius:2px}
.lgx .top{display:flex;flex-wrap:wrap;align-items:center;gap:4px 12px;min-height:46px;padding:5px 0}
.lgx .top .end{margin-left:auto;display:flex;gap:6px;align-items:center}
.lgx .bar{display:flex;flex-wrap:wrap;align-items:center;gap:2px 8px;min-height:28px;margin-bottom:4px}
.lgx .columns{display:grid;grid-template-columns:minmax(0,512fr) minmax(0,512fr) minmax(0,296fr);gap:24px}
.lgx.both .columns{grid-template-columns:minmax(0,400fr) minmax(0,520fr) minmax(0,400fr)}
.lgx.both .evidence{grid-template-columns:56px minmax(0,1fr) 34%}
.lgx.both .bars{height:100px;gap:3px}
.lgx.both .token{margin-top:2px}
.lgx.both .ramp{width:76px}
.lgx.both .legend{min-height:42px}
.lgx.both .token .head{min-height:16px}
.lgx .square{width:100%;aspect-ratio:1;touch-action:none}
.lgx .square:focus-visible,.lgx button:focus-visible,.lgx input:focus-visible{outline:2px solid var(--pick);outline-offset:1px}
.lgx .photograph .square{background:var(--soft)}
.lgx .seg{display:flex;flex-wrap:wrap;max-width:100%;border:1px solid var(--line);border-radius:5px;overflow:hidden}
.lgx button,.lgx .text{font:12px/20px system-ui,"Liberation Sans",sans-serif;color:var(--muted);background:none;border:0;margin:0;padding:1px 7px;cursor:pointer;white-space:nowrap}
.lgx .seg button+button{border-left:1px solid var(--line)}
.lgx :is(.seg,.legend) button:focus-visible{outline-offset:-2px}
.lgx button[aria-pressed=true]{background:var(--fg);color:var(--bg)}
.lgx .plain,.lgx .text{border:1px solid var(--line);border-radius:5px}
.lgx .swatch{padding:0;line-height:0;border-radius:2px;position:relative;background:none!important}
.lgx .tile,.lgx .others{display:block;aspect-ratio:1;border-radius:2px;image-rendering:pixelated}
.lgx .swatch .tile{outline:1px solid var(--line)}
.lgx .others{border:1px dashed var(--line)}
.lgx .patch::after{content:"";position:absolute;inset:37.5%;outline:1.5px solid var(--pick)}
.lgx .swatch span,.lgx .bars span{display:block;font-size:11px;line-height:14px;color:var(--muted);text-align:center}
.lgx .swatch[aria-pressed=true] .tile{outline:2px solid var(--pick)}
.lgx .dead::after{content:"×";position:absolute;inset:0;display:grid;place-items:center;font-size:20px;line-height:1}
.lgx .legend .swatch .tile{width:27px;margin:auto}
.lgx .swatch em{display:block;font-style:normal;line-height:12px;color:var(--fg)}
.lgx span.patch{cursor:default}
.lgx .choice .tile{width:36px;border-radius:4px;image-rendering:auto}
.lgx .find{display:flex;gap:4px;align-items:center}
.lgx .text{width:185px;cursor:text;color:var(--fg)}
.lgx .legend{display:flex;align-items:flex-start;gap:5px;min-height:54px;margin-top:6px;overflow:hidden}
.lgx .legend p{flex:0 1 auto;margin-right:auto;padding-top:2px}
.lgx .legend .swatch{min-width:27px;flex:none}
.lgx .legend .list{max-height:54px;overflow:auto;flex:1;user-select:text}
.lgx .legend .list button{padding:0 4px;margin:0 3px 2px 0;line-height:16px}
.lgx .ramp{display:inline-block;width:120px;height:10px;border-radius:2px;vertical-align:-1px;margin:0 6px}
.lgx .timeline{display:flex;align-items:center;gap:8px;margin-top:4px}
.lgx .timeline input{flex:0 0 30%;margin:0}
.lgx .bar input[type=range]{flex:1 0 90px;margin:0 8px}
.lgx .words{min-height:32px;margin:2px 0 4px}
.lgx .head{min-height:32px;margin-bottom:4px;user-select:text}
.lgx .evidence{display:grid;grid-template-columns:60px minmax(0,1fr) 34%;gap:10px}
.lgx .rows,.lgx .grid{display:grid;gap:4px;align-content:start}
.lgx .grid{grid-template-columns:repeat(4,minmax(0,1fr))}
.lgx .evidence p{line-height:13px;grid-column:1/-1}
.lgx .evidence p,.lgx .loupes p{font-size:11px}
.lgx .bars{display:grid;grid-template-columns:repeat(13,minmax(0,1fr));gap:6px;height:140px}
.lgx .bars .cell{display:flex;flex-direction:column;justify-content:flex-end;align-items:stretch;padding:0;min-width:0}
.lgx .bars span+i{background:var(--one);margin:1px 0 3px}
.lgx .bars .cell:first-child span+i{background:var(--pick)}
.lgx .bars .cell:last-child span+i{background:var(--muted)}
.lgx .bars .cell span:first-child{color:var(--fg)}
.lgx .stale{opacity:.35}
.lgx .caption{flex-wrap:wrap;min-height:20px;margin-top:5px;display:flex;gap:8px;justify-content:space-between}
.lgx .caption p:first-child{user-select:text}
.lgx .caption .first{color:var(--first)}.lgx .caption .second{color:var(--second)}
.lgx.both .caption p:last-child{flex-basis:100%}
.lgx .under,.lgx .token{margin-top:6px}
.lgx .token label{white-space:nowrap;flex:none;display:flex;align-items:center;height:18px;font-size:12px;color:var(--muted)}
.lgx .token .headline{display:flex;gap:10px;justify-content:space-between}
.lgx .curve{width:100%;height:128px;cursor:ew-resize;touch-action:none}
.lgx input[type=range]{width:calc(100% - 46px);margin:2px 23px;accent-color:var(--pick)}
.lgx .thumbs{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));align-content:start;gap:8px;margin-top:6px}
.lgx .thumb{display:block;align-self:start;padding:0;text-align:left;background:none!important;color:var(--muted)!important;min-width:0;line-height:15px;font-size:12px;white-space:normal}
.lgx .thumb canvas,.lgx .loupes canvas{width:100%;aspect-ratio:1;background:var(--soft)}
.lgx .caption button[data-set]{padding:0 2px;line-height:16px;text-decoration:underline}
.lgx .thumb canvas{border:1px solid var(--line);border-radius:3px}
.lgx .thumb[aria-pressed=true] canvas{outline:2px solid var(--pick)}
.lgx .loupes{display:grid;grid-template-columns:repeat(3,minmax(0,1fr));gap:6px;margin-top:6px}
.lgx.both .loupes{grid-template-columns:repeat(4,minmax(0,1fr))}
.lgx .help{position:absolute;z-index:3;right:16px;top:46px;width:min(440px,90%);background:var(--bg);border:1px solid var(--line);border-radius:6px;padding:10px 14px;box-shadow:0 4px 18px #0003}
.lgx .help p{margin-bottom:5px;color:var(--fg)}
.lgx .said{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
@container (max-width:1179px){
.lgx.both .temperature{display:block}
.lgx{padding:0 8px 8px;max-width:984px}
.lgx .columns{grid-template-columns:minmax(0,416fr) minmax(0,512fr)}
.lgx.both .columns{grid-template-columns:minmax(0,300fr) minmax(0,340fr) minmax(0,300fr);gap:14px}
.lgx .temperature{grid-column:1/-1;display:grid;grid-template-columns:minmax(0,280fr) minmax(0,420fr) minmax(0,220fr);gap:0 20px}
.lgx .hint{display:none}
.lgx .head-of-it{grid-row:1/3}.lgx .words-of-it{grid-area:2/2/3/4}
.lgx .thumbs{grid-template-columns:repeat(4,minmax(0,1fr));grid-area:1/2}
.lgx .evidence,.lgx.both .evidence{grid-template-columns:56px minmax(0,1fr) 32%;gap:8px}
}
@container (max-width:1279px){.lgx.both .bars .cell:nth-child(n+7):not(:last-child){display:none}.lgx.both .bars{grid-template-columns:repeat(7,minmax(0,1fr))}}
@container (max-width:899px){
.lgx .head-of-it,.lgx .words-of-it,.lgx .thumbs{grid-area:auto}
.lgx .columns,.lgx.both .columns{grid-template-columns:minmax(0,1fr)}
.lgx .temperature{grid-template-columns:minmax(0,1fr);gap:12px}
.lgx .evidence,.lgx.both .evidence{grid-template-columns:72px minmax(0,1fr) 34%}
.lgx .photograph{order:-1}
}
`;
